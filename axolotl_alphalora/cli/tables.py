"""A plan as a table for the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..allocation import Plan, expert_parameters
from ..blocks import block_name

_BAR = 20


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Print block, alpha, a bar, experts and trainable parameters, and a line of totals.

    Args:
        plan: The plan.
        console: Where to; the terminal if None.
    """
    (console or Console()).print(plan_table(plan))


def plan_table(plan: Plan) -> Table:
    """The table of a plan, for 80 columns and without need of colour."""
    weights = plan.weights
    read = [weights.get("source"), weights.get("dtype"), weights.get("quantization")]
    parameters = _parameters_of_blocks(plan)
    table = Table(
        title=f"Experts per block: {plan.strategy['name']}, rank {plan.rank}, top-{plan.top_k}",
        caption=f"{_short(plan.base_model)} ({', '.join(str(part) for part in read if part)})",
        show_footer=True,
    )
    table.add_column("block", footer="total")
    table.add_column("alpha", justify="right")
    table.add_column("experts", justify="right", footer=str(plan.total_experts))
    table.add_column("", min_width=_BAR)
    table.add_column("trainable", justify="right", footer=f"{plan.trainable_parameters:,}")
    most = max(block.experts for block in plan.blocks) or 1
    for block in plan.blocks:
        table.add_row(
            block.name,
            "-" if block.score is None else f"{block.score:.3f}",
            str(block.experts),
            "#" * round(_BAR * block.experts / most),
            f"{parameters[block.name]:,}",
        )
    return table


def _short(base_model: str) -> str:
    """A hub id as it is, a directory by its name."""
    return Path(base_model).name if Path(base_model).is_absolute() else base_model


def _parameters_of_blocks(plan: Plan) -> dict[str, int]:
    totals = dict.fromkeys((block.name for block in plan.blocks), 0)
    for module in plan.modules:
        out_features, in_features = module.shape
        totals[block_name(module.name)] += expert_parameters(
            in_features, out_features, module.experts, plan.rank
        )
    return totals
