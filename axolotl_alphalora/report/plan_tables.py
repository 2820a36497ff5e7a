"""Plans and analyses as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from ..allocation import Plan, expert_parameters
from ..blocks import block_name
from .findings import (
    BlockScores,
    Findings,
    block_experts,
    block_parameters,
    is_poor,
    module_shares,
)
from .tables import MARKDOWN, PAGE, TERMINAL, Bar, Column, Note, Table, names, over
from .words import decimal, numeral, source_line

if TYPE_CHECKING:
    from ..settings import MatrixQuality

_INTERVAL = "95 % range"
_LEGEND = "rank: eigenvalues above round-off / all; ! marks a poor fit"


def plan_table(plan: Plan, findings: Findings | None) -> Table:
    """Return score, experts and trainable parameters of each block.

    Args:
        plan: The plan.
        findings: What it records of matrices, if anything was measured.
    """
    scores = BlockScores.of(plan, findings)
    numbers = plan.block_numbers
    most = max(numbers.values())
    columns = [names("block", numbers)]
    if scores.values:
        columns.append(Column(scores.name, [scores.text(block) for block in numbers]))
    if scores.intervals:
        columns.append(_intervals(numbers, scores.intervals))
    columns += [
        Column("experts", list(block_experts(plan).values()), [numeral(plan.total_experts)]),
        Column("", [Bar(number / most) for number in numbers.values()], left=True, on=[TERMINAL]),
        Column(
            "trainable",
            [f"{number:,}" for number in block_parameters(plan).values()],
            [f"{plan.trainable_parameters:,}"],
            on=[TERMINAL, MARKDOWN],
        ),
    ]
    return Table(
        columns,
        title=f"Experts per block: {plan.strategy['name']}, rank {plan.rank}, top-{plan.top_k}",
        caption=source_line(plan.base_model, plan.weights),
        footer=["total"],
    )


def analysis_table(findings: Findings, model: str) -> Table:
    """Return alpha, distance and tail of each block."""
    settings, scores = findings.settings, findings.scores
    how = [settings.estimator, f"{settings.aggregate} over a block's matrices"]
    how += [f"windows of {settings.window}"] if settings.window else []
    how += ["normalised by kind"] if settings.normalize else []
    members: dict[str, list[MatrixQuality]] = {name: [] for name in scores}
    for row in findings.matrices:
        members[block_name(row.module)].append(row)
    distances, tails = [], []
    for rows in members.values():
        fits = [row.distance for row in rows if row.distance is not None]
        sizes = [row.tail_size for row in rows if row.tail_size is not None]
        distances.append(decimal(median(fits) if fits else None))
        tails.append(f"{median(sizes):g}" if sizes else "-")
    most = max(scores.values()) - 1 or 1
    bars = [Bar((score - 1) / most) for score in scores.values()]
    columns = [
        names("block", scores),
        Column("alpha", [decimal(score) for score in scores.values()]),
        *([_intervals(scores, findings.intervals)] if findings.intervals else []),
        Column("", bars, left=True, on=[TERMINAL]),
        Column("distance", distances),
        Column("tail", tails),
    ]
    source = source_line(model, findings.description)
    return Table(
        columns,
        title=f"Layer quality: alpha by {', '.join(how)}",
        caption=f"{source}; bars show alpha - 1, distance and tail are medians",
    )


def matrices_table(matrices: Sequence[MatrixQuality]) -> Table:
    """Return what was measured of each matrix."""
    modules = [row.module for row in matrices]
    shapes = [f"{row.shape[0]}x{row.shape[1]}" for row in matrices]
    columns = [names("module", modules), Column("shape", shapes), *_measured(modules, matrices)]
    return Table(columns, title=f"Matrices ({_LEGEND})", by_block=True)


def modules_table(plan: Plan, findings: Findings | None) -> Table:
    """Return the number of experts (n) and the rank (r) of each matrix, and what was measured."""
    rows = plan.modules
    modules = [row.name for row in rows]
    legend = "n: experts, r: rank of each"
    columns = [
        names("module", modules),
        Column("shape", [f"{row.shape[0]}x{row.shape[1]}" for row in rows]),
        Column("n", [str(row.experts) for row in rows]),
        Column("r", [str(row.rank) if row.experts else "-" for row in rows]),
    ]
    if findings is not None:
        legend += f"; {_LEGEND}"
        columns += _measured(modules, findings.matrices)
    else:
        sizes = [expert_parameters(*row.shape[::-1], row.experts, row.rank) for row in rows]
        columns.append(Column("trainable", [f"{size:,}" for size in sizes]))
    if shares := module_shares(plan):
        columns.append(
            Column("share", over(modules, {name: f"{one:.2%}" for name, one in shares.items()}))
        )
    return Table(columns, title=f"Matrices ({legend})", by_block=True)


def _intervals(blocks: Iterable[str], intervals: Mapping[str, tuple[float, float]]) -> Column:
    texts = {name: f"{low:.2f} - {high:.2f}" for name, (low, high) in intervals.items()}
    return Column(_INTERVAL, over(blocks, texts), on=[TERMINAL, PAGE])


def _measured(modules: Sequence[str], matrices: Sequence[MatrixQuality]) -> list[Column]:
    """Columns of what was measured, for modules of which some may not have been."""
    known = {row.module: row for row in matrices}
    rows = [known.get(module) for module in modules]

    def cells(text: Callable[[MatrixQuality], str]) -> list[str]:
        return ["-" if row is None else text(row) for row in rows]

    noted = any(row.note is not None for row in matrices)
    return [
        Column("alpha", cells(lambda row: decimal(row.alpha))),
        Column(
            "x_min",
            cells(lambda row: "-" if row.x_min is None else f"{row.x_min:.4g}"),
            on=[PAGE],
        ),
        Column("distance", cells(lambda row: decimal(row.distance)), on=[PAGE]),
        Column(
            "distance",
            cells(lambda row: f"{decimal(row.distance)}{'!' if is_poor(row) else ' '}"),
            on=[TERMINAL],
        ),
        Column("tail", cells(lambda row: "-" if row.tail_size is None else str(row.tail_size))),
        Column("rank", cells(lambda row: f"{row.numerical_rank}/{row.num_eigenvalues}")),
        Column(
            "note",
            ["-" if row is None else Note(row.note or "") for row in rows],
            left=True,
            on=[TERMINAL, PAGE] if noted else [PAGE],
        ),
    ]
