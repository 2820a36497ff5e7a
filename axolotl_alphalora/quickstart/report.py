"""What the quickstart shows at its end, and the same for machines."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..allocation import Plan
from .config import RunConfig
from .process import say

_PACKAGES = ("axolotl-alphalora", "axolotl", "peft", "torch", "transformers")
_EXAMPLE = {
    "Instruction": "instruction",
    "Input": "input",
    "Base model": "before",
    "With adapter": "after",
    "Expected": "expected",
}


def print_report(config: RunConfig, evaluation: dict[str, Any], console: Console) -> None:
    """Show losses, one answer, where the files are and what to do next."""
    console.print(_losses(evaluation))
    say(console, "\nA held-out prompt")
    for label, key in _EXAMPLE.items():
        if text := " ".join(evaluation["example"][key].split()):
            say(console, f"  {label + ':':<14}{text}")
    path, adapter, directory = config.path, config.output_dir, config.path.parent
    # `uv run` sets this; outside it its environment is not on the path.
    run = "python -m uv run --extra quickstart " if "UV" in os.environ else ""
    for line in (
        "\nFiles",
        f"  {path}  the YAML, with a comment on every option",
        f"  {adapter}  the adapter",
        f"  {directory}  everything else: data, logs, results",
        "\nNext: talk to it, or edit the YAML (your model, your data) and run this again",
        f"  {run}axolotl inference {path} --lora-model-dir {adapter} --launcher python",
        f"  {run}axolotl alphalora quickstart --dir {directory}",
    ):
        say(console, line)


def summary(
    config: RunConfig,
    plan: Plan,
    evaluation: dict[str, Any],
    seconds: dict[str, float],
    skipped: list[str],
) -> dict[str, Any]:
    """Return the same for machines, with the seconds that each stage took in this invocation."""
    scores = {unit.name: unit.score for unit in plan.units}
    return {
        "model": config.base_model,
        "config": str(config.path),
        "config_edited": config.edited,
        "adapter": str(config.output_dir),
        "steps": config.max_steps,
        "plan": {
            "strategy": plan.strategy,
            "total_experts": plan.total_experts,
            "trainable_parameters": plan.trainable_parameters,
            "blocks": [
                {"name": block, "score": scores.get(block), "experts": number}
                for block, number in plan.block_numbers.items()
            ],
        },
        **evaluation,
        "seconds": {stage: round(value, 2) for stage, value in seconds.items()},
        "skipped": skipped,
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in _PACKAGES},
        },
    }


def _losses(evaluation: dict[str, Any]) -> Table:
    tokens, rows = evaluation["answer_tokens"], evaluation["rows"]
    table = Table(title="Held-out loss per answer token", caption=f"{rows} rows, {tokens} tokens")
    table.add_column("skill")
    for heading in ("base model", "with adapter"):
        table.add_column(heading, justify="right")
    for task, loss in evaluation["held_out_loss_by_task"].items():
        table.add_row(escape(task), f"{loss['before']:.3f}", f"{loss['after']:.3f}")
    loss = evaluation["held_out_loss"]
    table.add_section()
    table.add_row("[bold]all", f"[bold]{loss['before']:.3f}", f"[bold]{loss['after']:.3f}")
    return table


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
