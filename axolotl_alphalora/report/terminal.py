"""Tables and sentences in a terminal: they read well at 80 columns, without colour, in a pipe.

Of what stands in them nothing is known here, but for a plan, which several commands and the run
itself print.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import fill

from rich import box
from rich.align import VerticalAlignMethod
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from ..allocation import Plan
from ..blocks import group_by_block, kind_of
from .findings import Findings
from .plan_sentences import summary
from .plan_tables import plan_table
from .quality_sentences import explain_plan
from .tables import TERMINAL, Bar, Cell, Column, Name, Note, Table
from .words import WARNING

_LEAST_NAME = 8
_BAR = 20
_UNBROKEN = 10_000
"""A width that every table fits."""


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Print score, a bar, experts and trainable parameters of each block, what it comes to, why.

    Args:
        plan: The plan.
        console: Where to; the terminal if None.
    """
    console = console or Console()
    findings = Findings.of_plan(plan)
    print_table(plan_table(plan, findings), console)
    for line in summary(plan):
        print_paragraph(line, console)
    print_lines(explain_plan(plan, findings), console)


def print_table(table: Table, console: Console) -> None:
    """Print a table between its title and its caption, and numbered notes below it."""
    table = table.on(TERMINAL)
    for number, part in enumerate(_parts(table, console)):
        if number:
            console.print()
        if table.title:
            print_paragraph(table.title, console, "bold")
        console.print(_rich(part))
        if table.caption:
            print_paragraph(table.caption, console)
    for number, note in enumerate(_notes(table), 1):
        console.print(f"{number:>3}  {note}", highlight=False, markup=False)


def print_lines(lines: Iterable[str], console: Console) -> None:
    """Print paragraphs, each after a blank line; warnings stand out in colour."""
    for line in lines:
        console.print()
        print_paragraph(line, console, "yellow" if line.startswith(WARNING) else None)


def print_paragraph(
    text: str, console: Console, style: str | None = None, indent: str = ""
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
    print_as_is(wrapped, console, style)


def print_as_is(text: str, console: Console, style: str | None = None) -> None:
    """Print a line that is neither wrapped, coloured nor read as markup: it may hold paths."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


class _ShortName:
    """A name that takes the width which the other columns leave."""

    def __init__(self, name: Name, indent: str = "") -> None:
        self.text, self.ending, self.indent = name.text, name.ending, indent

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        length = len(self.indent) + len(self.text)
        return Measurement(min(length, _LEAST_NAME), length)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text, width = self.indent + self.text, options.max_width
        if len(text) > width:
            text = f"...{text[3 - width :]}" if self.ending else f"{text[: width - 3]}..."
        yield Text(text, no_wrap=True)


class _Bar:
    """A bar of the column's width, of one mark at least if there is any."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, _BAR)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        marks = max(round(options.max_width * self.share), 1 if self.share > 0 else 0)
        yield Text("#" * marks, no_wrap=True)


def _parts(table: Table, console: Console) -> list[Table]:
    """Split a table that is too wide after columns that fit, each part with the leading ones."""
    if not table.leads:
        return [table]
    leads = list(table.columns[: table.leads])
    parts: list[list[Column]] = [[]]
    for column in table.columns[table.leads :]:
        wider = _rich(Table([*leads, *parts[-1], column], footer=table.footer))
        width = console.measure(wider, options=console.options.update(width=_UNBROKEN)).maximum
        if parts[-1] and width > console.width:
            parts.append([])
        parts[-1].append(column)
    return [Table([*leads, *part], footer=table.footer) for part in parts]


def _rich(table: Table) -> RichTable:
    """Return rich's table, which shares out the width."""
    totals = len(table.footer) == 1
    stands: VerticalAlignMethod = (
        "top" if any(column.wraps for column in table.columns) else "bottom"
    )
    shown = RichTable(
        box=box.SIMPLE,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_footer=totals,
    )
    first = table.columns[0]
    for column in table.columns:
        footer = table.footer if column is first else column.footer
        shown.add_column(
            Text(column.short or column.head),
            footer=Text(footer[0] if totals and footer else ""),
            justify="left" if column.left else "right",
            vertical=stands,
            no_wrap=not column.wraps and not _gives_way(column),
            overflow="fold" if column.wraps else "ellipsis",
        )
    notes = _notes(table)
    lines = [[_shown(cell, notes) for cell in row] for row in table.rows]
    if table.by_block:
        _add_by_block(shown, [name.text for name in first.cells if isinstance(name, Name)], lines)
    else:
        for line in lines:
            shown.add_row(*line)
    if not totals and table.footer:
        shown.add_section()
        for place, head in enumerate(table.footer):
            cells = (column.footer[place] for column in table.columns[1:])
            shown.add_row(_ShortName(Name(head)), *map(Text, cells))
    return shown


def _add_by_block(
    shown: RichTable, modules: Sequence[str], lines: Sequence[Sequence[RenderableType]]
) -> None:
    """Add rows of modules below the names of their blocks."""
    cells = dict(zip(modules, lines, strict=True))
    for block, members in group_by_block(modules).items():
        if members != [block]:
            shown.add_row(_ShortName(Name(block)), style="bold")
        for module in members:
            whole = _ShortName(Name(module))
            kind = whole if members == [block] else _ShortName(Name(kind_of(module)), "  ")
            shown.add_row(kind, *cells[module][1:])


def _gives_way(column: Column) -> bool:
    """Whether a column takes what width the others leave."""
    return any(isinstance(cell, Name | Bar) for cell in column.cells)


def _shown(cell: Cell, notes: Sequence[str]) -> RenderableType:
    if isinstance(cell, Name):
        return _ShortName(cell)
    if isinstance(cell, Bar):
        return _Bar(cell.share)
    if isinstance(cell, Note):
        return Text(str(notes.index(cell.text) + 1) if cell.text else "")
    return Text(cell)


def _notes(table: Table) -> list[str]:
    """The notes of a table, each once."""
    cells = (cell for column in table.columns for cell in column.cells)
    return list(dict.fromkeys(cell.text for cell in cells if isinstance(cell, Note) and cell.text))
