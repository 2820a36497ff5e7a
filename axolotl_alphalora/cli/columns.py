"""Ways of measuring or sharing out beside each other, as a table of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from .layout import GAP, plain_table, print_table, shorten

__all__ = ["Column", "print_columns"]

_WIDEST_LABEL = 24


@dataclass(frozen=True)
class Column:
    """One column of a comparison.

    Attributes:
        label: Its heading, broken after each ``+`` and, where it is long, anywhere.
        cells: Block name to text.
        subheading: What the cells hold, empty where that need not be said.
        below: What it comes to: name of a row to text.
    """

    label: str
    cells: Mapping[str, str]
    subheading: str = ""
    below: Mapping[str, str] = field(default_factory=dict)

    @property
    def heading(self) -> list[str]:
        """The parts of the label, a line for each."""
        return self.label.replace("+", "+\n").splitlines()

    @property
    def width(self) -> int:
        """The width of its texts; of a long part of the label no more than it needs to read."""
        texts = [self.subheading, *self.cells.values(), *self.below.values()]
        longest = max(map(len, texts))
        return max(longest, min(_WIDEST_LABEL, max(map(len, self.heading))))


def print_columns(columns: Sequence[Column], console: Console, title: str, caption: str) -> None:
    """Print a row for each block and, set off, the rows that are below.

    Columns that do not fit beside each other follow in another table, the first one repeated.

    Args:
        columns: At least one; all of the same blocks, with the same rows below.
        console: Where to.
        title: Printed above each table.
        caption: Printed below each table.
    """
    first = columns[0]
    longest = max(len(name) for name in (*first.cells, *first.below))
    widest = max(column.width for column in columns)
    names = max(8, min(longest, console.width - first.width - widest - 2 * GAP))
    left = console.width - names - GAP - first.width
    for number, part in enumerate(_packed(columns[1:], left)):
        if number:
            console.print()
        _print_part([first, *part], console, names, title, caption)


def _packed(columns: Sequence[Column], width: int) -> list[list[Column]]:
    """Split columns into runs that fit into a width, of one column at least."""
    runs: list[list[Column]] = [[]]
    left = width
    for column in columns:
        needed = GAP + column.width
        if runs[-1] and needed > left:
            runs.append([])
            left = width
        runs[-1].append(column)
        left -= needed
    return runs


def _print_part(
    columns: Sequence[Column], console: Console, width: int, title: str, caption: str
) -> None:
    table = plain_table()
    table.add_column("block", no_wrap=True)
    lines = max(len(column.heading) for column in columns)
    for column in columns:
        head = [""] * (lines - len(column.heading)) + column.heading
        if column.subheading:
            head.append(column.subheading)
        table.add_column("\n".join(head), justify="right", overflow="fold", width=column.width)
    for block in columns[0].cells:
        table.add_row(shorten(block, width), *(column.cells[block] for column in columns))
    table.add_section()
    for row in columns[0].below:
        table.add_row(shorten(row, width), *(column.below[row] for column in columns))
    print_table(console, title, table, caption)
