"""Tables of single matrices, by block: what was measured of them, and what they get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from ..allocation import Plan, expert_parameters
from ..blocks import group_by_block, kind_of
from .explain import is_poor
from .findings import Findings
from .layout import GAP, decimal, plain_table, print_table, shorten
from .scores import module_shares

if TYPE_CHECKING:
    from ..spectral import MatrixQuality

__all__ = ["print_by_block", "print_matrices", "print_modules"]

Columns = dict[str, Mapping[str, str]]
"""Heading to module name to text."""

_LEGEND = "rank: eigenvalues above round-off / all; ! marks a poor fit"


def print_matrices(matrices: Sequence[MatrixQuality], console: Console) -> None:
    """Print what was measured of each matrix, notes below the table."""
    modules = [row.module for row in matrices]
    columns, notes = _measured(matrices)
    shapes = {row.module: f"{row.shape[0]}x{row.shape[1]}" for row in matrices}
    print_by_block(console, f"Matrices ({_LEGEND})", modules, {"shape": shapes} | columns, notes)


def print_modules(plan: Plan, findings: Findings | None, console: Console) -> None:
    """Print the number of experts (n) and the rank (r) of each matrix, and what was measured."""
    legend = "n: experts, r: rank of each"
    columns: Columns = {
        "shape": {row.name: f"{row.shape[0]}x{row.shape[1]}" for row in plan.modules},
        "n": {row.name: str(row.experts) for row in plan.modules},
        "r": {row.name: str(row.rank) if row.experts else "-" for row in plan.modules},
    }
    notes: list[str] = []
    if findings is not None:
        legend += f"; {_LEGEND}"
        measured, notes = _measured(findings.matrices)
        columns |= measured
    else:
        columns["trainable"] = {
            row.name: f"{expert_parameters(row.shape[1], row.shape[0], row.experts, row.rank):,}"
            for row in plan.modules
        }
    shares = module_shares(plan)
    if shares:
        columns["share"] = {name: f"{share:.2%}" for name, share in shares.items()}
    print_by_block(
        console, f"Matrices ({legend})", [row.name for row in plan.modules], columns, notes
    )


def _measured(matrices: Sequence[MatrixQuality]) -> tuple[Columns, list[str]]:
    """Columns of what was measured, and the notes that the last one numbers."""
    notes = list(dict.fromkeys(row.note for row in matrices if row.note is not None))
    columns: Columns = {
        "alpha": {row.module: decimal(row.alpha) for row in matrices},
        "distance": {
            row.module: f"{decimal(row.distance)}{'!' if is_poor(row) else ' '}" for row in matrices
        },
        "tail": {
            row.module: "-" if row.tail_size is None else str(row.tail_size) for row in matrices
        },
        "rank": {row.module: f"{row.numerical_rank}/{row.num_eigenvalues}" for row in matrices},
    }
    if notes:
        columns["note"] = {
            row.module: "" if row.note is None else str(notes.index(row.note) + 1)
            for row in matrices
        }
    return columns, notes


def print_by_block(
    console: Console,
    title: str,
    modules: Sequence[str],
    columns: Columns,
    notes: Sequence[str] = (),
) -> None:
    """Print a table of modules under the names of their blocks, and numbered notes below it.

    Args:
        console: Where to.
        title: Heading.
        modules: Their names, in any order.
        columns: Heading to module name to text.
        notes: What numbers in a column stand for.
    """
    table = plain_table()
    blocks = group_by_block(modules)
    fixed = [max(len(head), *map(len, cells.values())) for head, cells in columns.items()]
    left = console.width - sum(fixed) - GAP * len(fixed)
    names = [*blocks, *(f"  {kind_of(name)}" for name in modules)]
    width = max(8, min(max(map(len, names)), left))
    table.add_column("module", no_wrap=True, min_width=width)
    for head in columns:
        table.add_column(head, justify="right", no_wrap=True)
    for block, members in blocks.items():
        if members != [block]:
            table.add_row(shorten(block, width), style="bold")
        for name in members:
            label = f"  {kind_of(name)}" if members != [block] else name
            cells = (column.get(name, "-") for column in columns.values())
            table.add_row(shorten(label, width), *cells)
    print_table(console, title, table)
    for number, note in enumerate(notes, 1):
        console.print(f"{number:>3}  {note}", highlight=False, markup=False)
