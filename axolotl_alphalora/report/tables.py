"""Tables as data.

How a terminal, a page or Markdown shows them is not known here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

TERMINAL, PAGE, MARKDOWN = "terminal", "page", "markdown"


@dataclass(frozen=True)
class Name:
    """A name, which may be shortened where there is little room.

    Attributes:
        text: The name.
        ending: Whether its end is what tells it apart, as with blocks; otherwise its beginning is.
    """

    text: str
    ending: bool = True


@dataclass(frozen=True)
class Bar:
    """A bar, of a length between 0 and 1."""

    share: float


@dataclass(frozen=True)
class Note:
    """A remark, which stands below the table where there is little room."""

    text: str


Cell = str | Name | Bar | Note


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        head: Its heading.
        cells: A cell for each row.
        footer: What it comes to, a cell for each row of the footer; may be left out.
        left: Whether it is aligned to the left, as texts are; numbers are aligned to the right.
        wraps: Whether its texts may run over several lines.
        short: Its heading where there is little room.
        on: Where it is shown.
    """

    head: str
    cells: Sequence[Cell]
    footer: Sequence[str] = ()
    left: bool = False
    wraps: bool = False
    short: str = ""
    on: Collection[str] = (TERMINAL, PAGE, MARKDOWN)


@dataclass(frozen=True)
class Table:
    """A table; the first column holds what its rows are of.

    Attributes:
        columns: Its columns, all with the same number of cells.
        title: What stands above it.
        caption: What stands below it.
        footer: Heads of the footer's rows, in the first column. A terminal alone shows it.
        by_block: Whether its rows are modules, which may stand under the names of their blocks.
        leads: Columns that are repeated where a terminal is too narrow for all of them and shows
            several tables; 0 shows one whatever happens.
    """

    columns: Sequence[Column]
    title: str = ""
    caption: str = ""
    footer: Sequence[str] = ()
    by_block: bool = False
    leads: int = 0

    def on(self, medium: str) -> Table:
        """Return the table with the columns that one medium shows."""
        return replace(self, columns=[one for one in self.columns if medium in one.on])

    @property
    def rows(self) -> list[tuple[Cell, ...]]:
        """Its rows, without the footer."""
        return list(zip(*(column.cells for column in self.columns), strict=True))


def names(head: str, texts: Iterable[str], ending: bool = True) -> Column:
    """Return the first column of a table, which names its rows."""
    return Column(head, [Name(text, ending) for text in texts], left=True)


def over(rows: Iterable[str], cells: Mapping[str, str]) -> list[str]:
    """Return a cell for each row by its name; a dash for those that have none."""
    return [cells.get(row, "-") for row in rows]
