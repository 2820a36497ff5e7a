"""A trained adapter and data to run through it, for the commands that look at it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..planning.keys import YAML_SUFFIXES, read_yaml
from .options import ModelName

if TYPE_CHECKING:
    from ..inspection import AdapterConfig
    from ..samples import Sample

_ADVICE = "Give the rows as a JSON lines file instead: `--data rows.jsonl`."


@dataclass(frozen=True)
class Data:
    """What to run, and on which base.

    Attributes:
        source: A JSON lines file, or an Axolotl YAML.
        samples: Rows to draw.
        seed: Of the drawing.
        base_model: Where the base is, if not where the adapter says; None for a YAML.
        load_in_4bit: Whether to quantise it to nf4; the YAML says for itself.
        load_in_8bit: Whether to quantise it to int8; the YAML says for itself.
        sequence_len: Tokens that a row of the file is cut to, if not the default; the YAML says for
            itself.
    """

    source: Path
    samples: int
    seed: int
    base_model: str | None = None
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    sequence_len: int | None = None

    @property
    def is_yaml(self) -> bool:
        """Whether the source is an Axolotl YAML."""
        return self.source.suffix in YAML_SUFFIXES

    def check_source(self) -> None:
        """Check that the YAML, if it is one, can be read.

        Raises:
            ValueError: If it cannot; names the file.
        """
        if self.is_yaml:
            read_yaml(self.source)

    def check(self) -> None:
        """Check that options go together, before anything is loaded.

        Raises:
            click.UsageError: If an option is one that the YAML decides, or two exclude each other.
        """
        if self.load_in_4bit and self.load_in_8bit:
            raise click.UsageError("--load-in-4bit or --load-in-8bit, not both.")
        own = (self.base_model, self.load_in_4bit, self.load_in_8bit, self.sequence_len)
        if self.is_yaml and any(own):
            raise click.UsageError(
                "the YAML says which base is loaded and how, and how long rows are: leave out "
                "--base-model, --load-in-4bit, --load-in-8bit and --sequence-len."
            )


@dataclass(frozen=True)
class Trained:
    """An adapter on its base, and rows.

    Attributes:
        model: The `PeftModel`, in evaluation mode.
        rows: Drawn from the data, in the order of their tasks.
        held_out: Other rows: those of `eval_data`, or that the run has for validation.
        base: The base model's directory or hub id.
    """

    model: Any
    rows: list[Sample]
    held_out: list[Sample]
    base: str


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what to run and on which base."""
    options = [
        click.option(
            "--samples",
            type=click.IntRange(min=2),
            default=128,
            show_default=True,
            help="Rows of the data to run, shared out over its tasks.",
        ),
        click.option("--seed", type=click.IntRange(min=0), default=0, help="Which rows are drawn."),
        click.option(
            "--sequence-len",
            type=click.IntRange(min=2),
            help="Tokens that a row of a JSON lines file is cut to; by default 2048.",
        ),
        click.option(
            "--base-model",
            type=ModelName(),
            help="The base model's directory, if it is not where it was trained.",
        ),
        click.option("--load-in-4bit", is_flag=True, help="Load the base in 4 bits (nf4)."),
        click.option("--load-in-8bit", is_flag=True, help="Load the base in 8 bits."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def given(*names: str) -> list[str]:
    """Return those of the running command's options that were given, as they are written."""
    context = click.get_current_context()
    written = {option.name: option.opts[0] for option in context.command.params}
    return [
        written[name]
        for name in names
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    ]


DATA_OPTIONS = ("samples", "seed", "sequence_len", "base_model", "load_in_4bit", "load_in_8bit")
"""Names of what `data_options` adds."""


def let_waiting_threads_yield() -> None:
    """Let torch's threads give up their core while they wait, if torch is not imported yet.

    Rows are run one at a time, so most products are small; where another process has the core,
    threads that spin cost many times what they compute.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def check_adapter(folder: Path) -> AdapterConfig:
    """Read the settings of a saved adapter, and see that its weights are there.

    Raises:
        ValueError: If the directory does not hold all of an adapter; says what to do.
    """
    from ..inspection import open_weights, read_config

    config = read_config(folder)
    with open_weights(folder):
        return config


def load_trained(folder: Path, data: Data, eval_data: Path | None = None) -> Trained:
    """Load an adapter's base as the data says, the adapter, and rows of the data.

    Args:
        folder: The adapter's directory.
        data: What to run.
        eval_data: A JSON lines file of further rows.

    Raises:
        ValueError: If the adapter, the base or the data cannot be read, or do not fit.
    """
    from ..evaluation import load_adapted, load_base, load_tokenizer, read_rows
    from ..evaluation.samples import SEQUENCE_LEN
    from ..threads import leave_busy_cores

    config = check_adapter(folder)
    if said := leave_busy_cores():
        click.echo(said, err=True)
    name = data.base_model or config.base_model or ""

    def rows_of(path: Path) -> list[Sample]:
        if not name:
            raise ValueError(f"{folder} does not say what its base model is: add --base-model.")
        tokenizer = load_tokenizer(folder, name)
        length = data.sequence_len or SEQUENCE_LEN
        return read_rows(path, tokenizer, data.samples, seed=data.seed, sequence_len=length)

    held_out = rows_of(eval_data) if eval_data is not None else []
    if data.is_yaml:
        from ..plugin.session import HostModel

        host = HostModel(data.source)
        base = host.base(_ADVICE)
        rows, validation = host.rows(data.samples, data.seed, _ADVICE)
        held_out = held_out or validation
        name = host.base_model
    else:
        rows = rows_of(data.source)
        base = load_base(
            name,
            revision=None if data.base_model else config.revision,
            load_in_4bit=data.load_in_4bit,
            load_in_8bit=data.load_in_8bit,
        )
    return Trained(load_adapted(base, folder), rows, held_out, name)
