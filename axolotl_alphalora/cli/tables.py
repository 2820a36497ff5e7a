"""Plans and analyses as tables of blocks for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ..allocation import Plan, expert_parameters
from ..blocks import block_name, group_by_block
from .explain import explain
from .findings import Findings
from .layout import (
    bar,
    decimal,
    plain_table,
    print_lines,
    print_paragraph,
    print_table,
    shorten,
    source_line,
    split_width,
)
from .scores import BlockScores
from .summary import differs_within_blocks, summary
from .words import numeral

if TYPE_CHECKING:
    from ..spectral import MatrixQuality

__all__ = ["parameters_of_blocks", "print_analysis", "print_plan"]

_INTERVAL = "95 % range"


def print_plan(plan: Plan, console: Console | None = None, explained: bool = True) -> None:
    """Print score, a bar, experts and trainable parameters of each block, what it comes to, why.

    Args:
        plan: The plan.
        console: Where to; the terminal if None.
        explained: Whether to say in words what stands out and how far to trust it.
    """
    console = console or Console()
    findings = Findings.of_plan(plan)
    scores = BlockScores.of(plan, findings)
    title = f"Experts per block: {plan.strategy['name']}, rank {plan.rank}, top-{plan.top_k}"
    caption = source_line(plan.base_model, plan.weights)
    print_table(console, title, _plan_table(plan, scores, console.width), caption)
    for line in summary(plan):
        print_paragraph(console, line)
    if explained and findings is not None:
        experts = {unit.name: unit.experts for unit in plan.units}
        print_lines(console, explain(findings, experts))


def print_analysis(findings: Findings, model: str, console: Console) -> None:
    """Print alpha, distance and tail of each block, and what they come to."""
    settings = findings.settings
    how = [f"{settings.aggregate} over a block's matrices"]
    how += [f"windows of {settings.window}"] if settings.window else []
    how += ["normalised by kind"] if settings.normalize else []
    print_table(
        console,
        f"Layer quality: alpha by {', '.join([settings.estimator, *how])}",
        _analysis_table(findings, console.width),
        f"{source_line(model, findings.description)}; bars show alpha - 1, distance and tail are "
        "medians",
    )
    print_lines(console, explain(findings))


def _plan_table(plan: Plan, scores: BlockScores, width: int) -> Table:
    parameters = parameters_of_blocks(plan)
    numbers = plan.block_numbers
    experts = _experts_of_blocks(plan)
    total = f"{plan.trainable_parameters:,}"
    intervals = {block: _interval(scores.intervals.get(block)) for block in numbers}
    fixed = [
        max(len("experts"), *map(len, experts.values())),
        max(len(total), len("trainable")),
    ]
    if scores.values:
        fixed.append(max(len(scores.name), *(len(scores.text(block)) for block in numbers)))
    if scores.intervals:
        fixed.append(max(len(_INTERVAL), *map(len, intervals.values())))
    name_width, bar_width = split_width(width, fixed, numbers)
    table = plain_table(footer=True)
    table.add_column("block", footer="total", no_wrap=True)
    if scores.values:
        table.add_column(scores.name, justify="right")
    if scores.intervals:
        table.add_column(_INTERVAL, justify="right", no_wrap=True)
    table.add_column("experts", justify="right", footer=numeral(plan.total_experts), no_wrap=True)
    table.add_column("", min_width=bar_width, no_wrap=True)
    table.add_column("trainable", justify="right", footer=total, no_wrap=True)
    most = max(numbers.values())
    for block, number in numbers.items():
        table.add_row(
            shorten(block, name_width),
            *([scores.text(block)] if scores.values else []),
            *([intervals[block]] if scores.intervals else []),
            experts[block],
            bar(number / most, bar_width),
            f"{parameters[block]:,}",
        )
    return table


def _experts_of_blocks(plan: Plan) -> dict[str, str]:
    """Return each block's number; the mean and the range of its modules where blocks differ."""
    means, numbers = plan.block_numbers, plan.numbers
    if not differs_within_blocks(plan):
        return {block: numeral(mean) for block, mean in means.items()}
    texts = {}
    for block, names in group_by_block(numbers).items():
        found = [numbers[name] for name in names]
        low, high = min(found), max(found)
        spread = str(low) if low == high else f"{low}-{high}"
        texts[block] = f"{means[block]:.1f} ({spread})"
    return texts


def _analysis_table(findings: Findings, width: int) -> Table:
    names = list(findings.scores)
    with_intervals = bool(findings.intervals)
    intervals = {name: _interval(findings.intervals.get(name)) for name in names}
    fixed = [6, 8, 6] + [max(len(_INTERVAL), *map(len, intervals.values()))] * with_intervals
    name_width, bar_width = split_width(width, fixed, names)
    table = plain_table()
    table.add_column("block", no_wrap=True)
    table.add_column("alpha", justify="right")
    if with_intervals:
        table.add_column(_INTERVAL, justify="right", no_wrap=True)
    table.add_column("", min_width=bar_width, no_wrap=True)
    table.add_column("distance", justify="right")
    table.add_column("tail", justify="right")
    members: dict[str, list[MatrixQuality]] = {}
    for row in findings.matrices:
        members.setdefault(block_name(row.module), []).append(row)
    most = max(findings.scores.values()) - 1 or 1
    for name, score in findings.scores.items():
        distances = [row.distance for row in members[name] if row.distance is not None]
        tails = [row.tail_size for row in members[name] if row.tail_size is not None]
        table.add_row(
            shorten(name, name_width),
            decimal(score),
            *([intervals[name]] if with_intervals else []),
            bar((score - 1) / most, bar_width),
            decimal(median(distances) if distances else None),
            f"{median(tails):g}" if tails else "-",
        )
    return table


def _interval(ends: tuple[float, float] | None) -> str:
    return "-" if ends is None else f"{ends[0]:.2f} - {ends[1]:.2f}"


def parameters_of_blocks(plan: Plan) -> Mapping[str, int]:
    """Return each block's trainable parameters."""
    totals = dict.fromkeys(plan.block_numbers, 0)
    for module in plan.modules:
        out_features, in_features = module.shape
        totals[block_name(module.name)] += expert_parameters(
            in_features, out_features, module.experts, module.rank
        )
    return totals
