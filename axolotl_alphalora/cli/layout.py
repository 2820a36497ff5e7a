"""Tables that read well at 80 columns, without colour and in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .explain import WARNING

__all__ = [
    "GAP",
    "bar",
    "decimal",
    "plain_table",
    "print_lines",
    "print_paragraph",
    "print_table",
    "shorten",
    "source_line",
    "split_width",
]

GAP = 2
"""Blanks between columns."""

_BAR = 20
_LEAST_BAR = 6


def plain_table(footer: bool = False) -> Table:
    """Return a table without columns, ruled under its head, between sections, above its footer."""
    return Table(
        box=box.SIMPLE,
        show_edge=False,
        pad_edge=False,
        padding=(0, GAP - 1, 0, 0),
        show_footer=footer,
    )


def split_width(width: int, fixed: Sequence[int], names: Iterable[str]) -> tuple[int, int]:
    """Share what other columns leave between a column of names and one of bars.

    Args:
        width: Width of the whole table.
        fixed: Widths of the other columns.
        names: The names.

    Returns:
        Width of the names, which come first, and of the bars.
    """
    left = width - sum(fixed) - GAP * (len(fixed) + 1)
    longest = max(map(len, names))
    name = max(8, min(longest, left - _LEAST_BAR))
    return name, max(1, min(_BAR, left - name))


def shorten(name: str, width: int) -> str:
    """Return the end of a name that is too long: the end is what tells blocks apart."""
    return name if len(name) <= width else f"...{name[3 - width :]}"


def bar(share: float, width: int) -> str:
    """Return a bar for a share between 0 and 1, of one mark at least if there is any."""
    return "#" * max(round(width * share), 1 if share > 0 else 0)


def decimal(value: float | None) -> str:
    """Return three decimals; a dash for None."""
    return "-" if value is None else f"{value:.3f}"


def source_line(model: str, weights: dict[str, Any]) -> str:
    """Return the model's name and where its weights came from."""
    # A hub id as it is, a directory by its name.
    name = Path(model).name if Path(model).is_absolute() else model
    if weights["source"] == "none":
        return name
    read = (weights.get(key) for key in ("source", "dtype", "quantization"))
    return f"{name} ({', '.join(dict.fromkeys(str(part) for part in read if part))})"


def print_table(console: Console, title: str, table: Table, caption: str | None = None) -> None:
    """Print a table between its title and its caption."""
    print_paragraph(console, title, "bold")
    console.print(table)
    if caption is not None:
        print_paragraph(console, caption)


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print paragraphs, each after a blank line; warnings stand out in colour."""
    for line in lines:
        console.print()
        print_paragraph(console, line, "yellow" if line.startswith(WARNING) else None)


def print_paragraph(
    console: Console, text: str, style: str | None = None, indent: str = ""
) -> None:
    """Print text, wrapped between words only, so that names and paths can be copied.

    Markup in it is not read.
    """
    wrapped = fill(
        text,
        console.width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    console.print(wrapped, style=style, highlight=False, markup=False, soft_wrap=True)
