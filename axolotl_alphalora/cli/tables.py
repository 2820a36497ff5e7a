"""Plans, analyses and matrices as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ..allocation import Plan, expert_parameters
from ..blocks import block_name, group_by_block, kind_of
from .explain import explain, is_poor
from .findings import Findings
from .layout import (
    bar,
    plain_table,
    print_lines,
    print_table,
    shorten,
    source_line,
    split_width,
)

if TYPE_CHECKING:
    from ..spectral import MatrixQuality

__all__ = ["print_analysis", "print_matrices", "print_plan"]

_INTERVAL = "95 % range"


def print_plan(plan: Plan, console: Console | None = None, explained: bool = True) -> None:
    """Print block, alpha, a bar, experts and trainable parameters, a line of totals, and why.

    Args:
        plan: The plan.
        console: Where to; the terminal if None.
        explained: Whether to say in words what stands out and how far to trust it.
    """
    console = console or Console()
    title = f"Experts per block: {plan.strategy['name']}, rank {plan.rank}, top-{plan.top_k}"
    caption = source_line(plan.base_model, plan.weights)
    print_table(console, title, _plan_table(plan, console.width), caption)
    findings = Findings.of_plan(plan) if explained else None
    if findings is not None:
        experts = {block.name: block.experts for block in plan.blocks}
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


def print_matrices(matrices: Sequence[MatrixQuality], console: Console) -> None:
    """Print a table of matrices by block, notes below it."""
    numbers: dict[str, int] = {}
    for row in matrices:
        if row.note is not None:
            numbers.setdefault(row.note, len(numbers) + 1)
    shapes = [f"{row.shape[0]}x{row.shape[1]}" for row in matrices]
    table = plain_table()
    fixed = [max(map(len, shapes), default=5), 7, 8, 6, 13] + [5] * bool(numbers)
    blocks = group_by_block(row.module for row in matrices)
    names = [*blocks, *(f"  {kind_of(row.module)}" for row in matrices)]
    width, _ = split_width(console.width + 6, fixed, names)
    table.add_column("module", no_wrap=True, min_width=min(width, max(map(len, names))))
    for header in ("shape", "alpha", "distance", "tail", "rank"):
        table.add_column(header, justify="right", no_wrap=True)
    if numbers:
        table.add_column("note", justify="right", no_wrap=True)
    known = {row.module: row for row in matrices}
    for block, modules in blocks.items():
        if modules != [block]:
            table.add_row(shorten(block, width), style="bold")
        for module in modules:
            row = known[module]
            table.add_row(
                shorten(f"  {kind_of(module)}" if modules != [block] else module, width),
                f"{row.shape[0]}x{row.shape[1]}",
                _number(row.alpha),
                f"{_number(row.distance)}{'!' if is_poor(row) else ' '}",
                "-" if row.tail_size is None else str(row.tail_size),
                f"{row.numerical_rank}/{row.num_eigenvalues}",
                *([str(numbers.get(row.note or "", ""))] if numbers else []),
            )
    title = "Matrices (rank: eigenvalues above round-off / all; ! marks a poor fit)"
    print_table(console, title, table)
    for note, number in numbers.items():
        console.print(f"{number:>3}  {note}", highlight=False, markup=False)


def _plan_table(plan: Plan, width: int) -> Table:
    parameters = _parameters_of_blocks(plan)
    total = f"{plan.trainable_parameters:,}"
    intervals = [_interval(block.interval) for block in plan.blocks]
    with_intervals = any(block.interval for block in plan.blocks)
    names = [block.name for block in plan.blocks]
    fixed = [6, 7, max(len(total), len("trainable"))]
    fixed += [max(len(_INTERVAL), *map(len, intervals))] * with_intervals
    name_width, bar_width = split_width(width, fixed, names)
    table = plain_table(footer=True)
    table.add_column("block", footer="total", no_wrap=True)
    table.add_column("alpha", justify="right")
    if with_intervals:
        table.add_column(_INTERVAL, justify="right", no_wrap=True)
    table.add_column("experts", justify="right", footer=str(plan.total_experts))
    table.add_column("", min_width=bar_width, no_wrap=True)
    table.add_column("trainable", justify="right", footer=total, no_wrap=True)
    most = max(block.experts for block in plan.blocks) or 1
    for block, interval in zip(plan.blocks, intervals, strict=True):
        table.add_row(
            shorten(block.name, name_width),
            _number(block.score),
            *([interval] if with_intervals else []),
            str(block.experts),
            bar(block.experts / most, bar_width),
            f"{parameters[block.name]:,}",
        )
    return table


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
            _number(score),
            *([intervals[name]] if with_intervals else []),
            bar((score - 1) / most, bar_width),
            _number(median(distances) if distances else None),
            f"{median(tails):g}" if tails else "-",
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(ends: tuple[float, float] | None) -> str:
    return "-" if ends is None else f"{ends[0]:.2f} - {ends[1]:.2f}"


def _parameters_of_blocks(plan: Plan) -> dict[str, int]:
    totals = dict.fromkeys((block.name for block in plan.blocks), 0)
    for module in plan.modules:
        out_features, in_features = module.shape
        totals[block_name(module.name)] += expert_parameters(
            in_features, out_features, module.experts, plan.rank
        )
    return totals
