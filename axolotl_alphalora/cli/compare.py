"""Several ways of measuring or sharing out, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import StatisticsError, correlation
from typing import Any

from rich.console import Console

from ..allocation import STRATEGIES
from ..settings import ESTIMATORS, QualitySettings
from .layout import GAP, plain_table, print_lines, print_table, shorten

__all__ = ["AS_GIVEN", "Column", "as_document", "print_comparison", "read_spec"]

AS_GIVEN = "as given"
"""Label of the first column."""

_WIDEST_LABEL = 24
_ROWS = ("rank correlation", "blocks that differ", "experts that move", "not noise")


def read_spec(spec: str) -> dict[str, Any]:
    """Read what one column of a comparison changes.

    Args:
        spec: Parts joined by ``+``: ``option=value``, the name of an estimator, or the name of a
            strategy. Values are read as in YAML: ``estimator=hill+beta=1``, ``window=auto``.

    Returns:
        Option to value, ``strategy`` among them.

    Raises:
        ValueError: If a part is none of these, or an option is named twice.
    """
    import yaml

    found: dict[str, Any] = {}
    for part in spec.split("+"):
        key, equals, text = (piece.strip() for piece in part.partition("="))
        if equals:
            try:
                value = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ValueError(f"--compare {spec}: {text!r} is no value") from error
        elif key in STRATEGIES:
            key, value = "strategy", key
        elif key in ESTIMATORS:
            key, value = "estimator", key
        else:
            raise ValueError(
                f"--compare {spec}: {part!r} is no estimator ({', '.join(ESTIMATORS)}), no "
                f"strategy ({', '.join(STRATEGIES)}) and no option=value"
            )
        if key in found:
            raise ValueError(f"--compare {spec}: {key} is named twice")
        found[key] = value
    return found


@dataclass(frozen=True)
class Column:
    """One way of measuring or sharing out.

    Attributes:
        label: Its heading.
        scores: Block name to score, None where there is none.
        experts: Block name to number of experts, None where none are planned.
        trust: Share of the variance between blocks that is not noise, None if not known.
        document: The whole of it as JSON values.
    """

    label: str
    scores: Mapping[str, float | None]
    experts: Mapping[str, int] | None
    trust: float | None
    document: Mapping[str, Any]

    def correlation(self, other: Column) -> float | None:
        """Return Spearman's rank correlation of the scores; None where it is not defined."""
        mine = [score for score in self.scores.values() if score is not None]
        others = [other.scores[block] for block in self.scores]
        theirs = [score for score in others if score is not None]
        if not len(mine) == len(theirs) == len(self.scores):
            return None
        try:
            return correlation(mine, theirs, method="ranked")
        except StatisticsError:
            return None

    def changed_blocks(self, other: Column) -> int | None:
        """Return how many blocks have another number of experts."""
        if self.experts is None or other.experts is None:
            return None
        return sum(number != other.experts[block] for block, number in self.experts.items())

    def moved_experts(self, other: Column) -> int | None:
        """Return how many experts are in another block."""
        if self.experts is None or other.experts is None:
            return None
        return sum(max(0, number - other.experts[block]) for block, number in self.experts.items())


def as_document(columns: Sequence[Column], key: str) -> dict[str, Any]:
    """Return a comparison as JSON values.

    Args:
        columns: The columns; differences are against the first.
        key: What to call a column's own document, ``plan`` or ``analysis``.

    Returns:
        ``columns``: for each its ``label``, ``rank_correlation`` of the blocks' scores with the
        first column's, ``blocks_that_differ`` and ``experts_that_move`` (null without experts),
        ``trust``, and the document.
    """
    first = columns[0]
    return {
        "columns": [
            {
                "label": column.label,
                "rank_correlation": column.correlation(first),
                "blocks_that_differ": column.changed_blocks(first),
                "experts_that_move": column.moved_experts(first),
                "trust": column.trust,
                key: dict(column.document),
            }
            for column in columns
        ]
    }


def print_comparison(columns: Sequence[Column], console: Console, title: str, caption: str) -> None:
    """Print alpha and experts of every block, one column for each way, differences below.

    Columns that do not fit beside each other follow in another table, the first one repeated.
    """
    blocks = list(columns[0].scores)
    widths = [_width(column) for column in columns]
    longest = max(len(name) for name in (*blocks, *_ROWS))
    names = max(8, min(longest, console.width - 2 * (GAP + max(widths))))
    left = console.width - names - GAP - widths[0]
    for number, part in enumerate(_packed(columns[1:], left)):
        if number:
            console.print()
        _print_part([columns[0], *part], console, names, title, caption)
    print_lines(
        console,
        [
            "Differences are against the first column. Not noise: the share of the variance "
            "between the blocks' alphas that is more than the fits' errors explain; a dash where "
            "only resampling (--confidence, one column at a time) can tell."
        ],
    )


def _packed(columns: Sequence[Column], width: int) -> list[list[Column]]:
    """Split columns into runs that fit into a width, of one column at least."""
    runs: list[list[Column]] = [[]]
    left = width
    for column in columns:
        needed = GAP + _width(column)
        if runs[-1] and needed > left:
            runs.append([])
            left = width
        runs[-1].append(column)
        left -= needed
    return runs


def _print_part(
    columns: Sequence[Column], console: Console, width: int, title: str, caption: str
) -> None:
    with_experts = columns[0].experts is not None
    table = plain_table()
    table.add_column("block", no_wrap=True)
    lines = max(column.label.count("+") for column in columns)
    for column in columns:
        head = "\n" * (lines - column.label.count("+")) + column.label.replace("+", "+\n")
        head += "\nalpha   n" if with_experts else ""
        table.add_column(head, justify="right", overflow="fold", width=_width(column))
    for block in columns[0].scores:
        table.add_row(shorten(block, width), *(_cell(column, block) for column in columns))
    table.add_section()
    first = columns[0]
    own, others = ["-"], columns[1:]
    table.add_row(_ROWS[0], *own, *(_decimal(column.correlation(first)) for column in others))
    if with_experts:
        table.add_row(_ROWS[1], *own, *(str(column.changed_blocks(first)) for column in others))
        table.add_row(_ROWS[2], *own, *(str(column.moved_experts(first)) for column in others))
    table.add_row(_ROWS[3], *(_percent(column.trust) for column in columns))
    print_table(console, title, table, caption)


def _width(column: Column) -> int:
    """Return the width of a column: that of its cells, or of a part of its label."""
    cell = 6 if column.experts is None else 10
    parts = column.label.replace("+", "+\n").splitlines()
    return max(cell, min(_WIDEST_LABEL, max(map(len, parts))))


def _cell(column: Column, block: str) -> str:
    score = column.scores[block]
    text = "-" if score is None else f"{score:.3f}"
    return text if column.experts is None else f"{text} {column.experts[block]:>3}"


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def quality_options(spec: str) -> dict[str, Any]:
    """Read a specification of measuring only.

    Raises:
        ValueError: As :func:`read_spec` does, and if it names an option of sharing out.
    """
    found = read_spec(spec)
    for key in found:
        if key not in QualitySettings.names():
            raise ValueError(
                f"--compare {spec}: {key} is no option of measuring: it takes "
                f"{', '.join(QualitySettings.names())}"
            )
    return found
