"""`alphalora quickstart`: from nothing to a trained and reloaded adapter."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from ..quickstart.config import DEFAULT_STEPS
from .options import FilePath, ModelName, check_files, errors_in_words


@click.command()
@click.option(
    "--model",
    type=ModelName(),
    help="Directory or hub id of a model; SmolLM2-135M-Instruct if left out.",
)
@click.option(
    "--steps",
    default=DEFAULT_STEPS,
    show_default=True,
    type=click.IntRange(min=1),
    help="Optimizer steps.",
)
@click.option(
    "--dir",
    "directory",
    default="alphalora-quickstart",
    show_default=True,
    type=FilePath(file_okay=False),
    help="Where configuration, data and adapter go.",
)
@click.option(
    "--json",
    "json_path",
    type=FilePath(dir_okay=False),
    help="Also write a machine-readable summary to this file.",
)
def quickstart(model: str | None, steps: int, directory: Path, json_path: Path | None) -> None:
    """Fine-tune a real model with AlphaLoRA, end to end, on any machine.

    Prepares the model, writes a commented configuration and a small dataset, plans the experts,
    runs `axolotl train`, reloads the adapter with plain PEFT and shows what came of it. Stopped at
    any point, the same command continues.
    """

    from ..quickstart.run import run_quickstart

    check_files({"--json": json_path})
    with errors_in_words():
        run_quickstart(
            model=model, steps=steps, directory=directory, json_path=json_path, console=Console()
        )
