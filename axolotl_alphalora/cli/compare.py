"""Comparisons as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from ..allocation import Plan
from ..planning import (
    Compared,
    Stability,
    changed_blocks,
    moved_experts,
    rank_correlation,
)
from .columns import Column, print_columns
from .findings import Findings
from .layout import decimal, plain_table, print_lines, print_table, shorten, source_line
from .scores import BlockScores
from .summary import budget_words, left_over
from .words import numeral

__all__ = ["Analysed", "analyses_as_document", "plans_as_document", "print_analyses", "print_plans"]

_VARIED = {
    "estimators": "stability: estimators",
    "resamples": "stability: resamples",
    "halves": "stability: halves",
}


@dataclass(frozen=True)
class Analysed:
    """One way of measuring.

    Attributes:
        label: Its heading.
        scores: Block name to alpha.
        trust: Share of the variance between blocks that is not noise, None if not known.
        document: The analysis as JSON values.
    """

    label: str
    scores: Mapping[str, float]
    trust: float | None
    document: Mapping[str, Any]

    def correlation(self, other: Analysed) -> float | None:
        """Return Spearman's rank correlation of the alphas; None where it is not defined."""
        return rank_correlation(self.scores, other.scores)


def analyses_as_document(columns: Sequence[Analysed]) -> dict[str, Any]:
    """Return compared analyses as JSON values.

    Returns:
        ``columns``: for each its ``label``, ``rank_correlation`` of the blocks' alphas with the
        first column's, ``trust`` and the ``analysis``.
    """
    first = columns[0]
    return {
        "columns": [
            {
                "label": column.label,
                "rank_correlation": column.correlation(first),
                "trust": column.trust,
                "analysis": dict(column.document),
            }
            for column in columns
        ]
    }


def print_analyses(columns: Sequence[Analysed], console: Console, caption: str) -> None:
    """Print the alpha of every block, a column for each way of measuring, differences below."""
    first = columns[0]
    texts = [
        Column(
            column.label,
            {block: decimal(score) for block, score in column.scores.items()},
            below={
                "rank correlation": "-" if column is first else _two(column.correlation(first)),
                "not noise": "-" if column.trust is None else f"{column.trust:.0%}",
            },
        )
        for column in columns
    ]
    print_columns(texts, console, "Alpha of each block", caption)
    print_lines(
        console,
        [
            "Rank correlations are with the first column. Not noise: the share of the variance "
            "between the blocks' alphas that is more than the fits' errors explain; a dash where "
            "only resampling (--confidence, one column at a time) can tell."
        ],
    )


def plans_as_document(columns: Sequence[Compared]) -> dict[str, Any]:
    """Return compared plans as JSON values.

    Returns:
        ``columns``: for each its ``label``; ``rank_correlation`` of the modules' numbers with the
        first column's, null where a plan is constant; ``blocks_that_differ`` and
        ``experts_that_move`` against the first; ``stability``: a list of ``over``, ``plans``,
        ``rank_correlation`` and ``moved``, empty for a plan that rests on no evidence, null where
        it is not known; ``trust``; and the ``plan``. ``rank_correlations``: of all pairs.
    """
    first = columns[0].plan
    rows = []
    for column in columns:
        findings = Findings.of_plan(column.plan)
        known = column.stability
        rows.append(
            {
                "label": column.label,
                "rank_correlation": rank_correlation(first.numbers, column.plan.numbers),
                "blocks_that_differ": changed_blocks(column.plan, first),
                "experts_that_move": moved_experts(column.plan.numbers, first.numbers),
                "stability": None if known is None else [asdict(one) for one in known],
                "trust": findings.trust if findings else None,
                "plan": column.plan.to_dict(),
            }
        )
    return {
        "columns": rows,
        "rank_correlations": [
            [rank_correlation(one.plan.numbers, other.plan.numbers) for other in columns]
            for one in columns
        ],
    }


def print_plans(columns: Sequence[Compared], console: Console) -> None:
    """Print the experts of every block, a column for each plan; below, how the plans differ."""
    first = columns[0].plan
    described = next((one.plan for one in columns if one.plan.weights["source"] != "none"), first)
    # The strategies that bring their own numbers record no budget.
    budgeted = next((one.plan for one in columns if one.plan.budget["kind"]), first)
    varied = _varied(columns)
    texts = [_column(column, first, column is columns[0], varied) for column in columns]
    title = f"Experts (n) per block; budget: {budget_words(budgeted)}"
    caption = source_line(described.base_model, described.weights)
    print_columns(texts, console, title, caption)
    if len(columns) > 2:
        console.print()
        _print_correlations(columns, console)
    print_lines(console, _legend(columns, varied))


def _column(column: Compared, first: Plan, is_first: bool, varied: Sequence[str]) -> Column:
    plan = column.plan
    scores = BlockScores.of(plan, Findings.of_plan(plan))
    numbers = {block: numeral(number) for block, number in plan.block_numbers.items()}
    width = max(3, *map(len, numbers.values()))
    cells = {
        block: f"{scores.text(block)} {number:>{width}}" if scores.values else number
        for block, number in numbers.items()
    }
    below = {
        "total experts": numeral(plan.total_experts),
        "trainable": f"{plan.trainable_parameters:,}",
        "left over": left_over(plan),
        "rank correlation": "-",
        "blocks that differ": "-",
        "experts that move": "-",
    }
    if not is_first:
        below |= {
            "rank correlation": _two(rank_correlation(first.numbers, plan.numbers)),
            "blocks that differ": str(changed_blocks(plan, first)),
            "experts that move": numeral(moved_experts(plan.numbers, first.numbers)),
        }
    known = {one.over: one for one in column.stability or ()}
    for over in varied:
        below[_VARIED[over]] = "fixed" if column.stability == () else _stable(known.get(over))
    head = f"{scores.name} {'n':>{width}}" if scores.values else "n"
    return Column(column.label, cells, head, below)


def _varied(columns: Iterable[Compared]) -> list[str]:
    """What was varied for any of the plans."""
    known = {one.over for column in columns for one in column.stability or ()}
    return [over for over in _VARIED if over in known]


def _stable(known: Stability | None) -> str:
    return "-" if known is None else f"{_two(known.rank_correlation)} {known.moved:>4.0%}"


def _print_correlations(columns: Sequence[Compared], console: Console) -> None:
    table = plain_table()
    table.add_column("plan", no_wrap=True)
    for number in range(1, len(columns) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    width = max(8, console.width - 7 * len(columns))
    for number, column in enumerate(columns, 1):
        pairs = (rank_correlation(column.plan.numbers, other.plan.numbers) for other in columns)
        table.add_row(shorten(f"{number} {column.label}", width), *map(_two, pairs))
    print_table(console, "Rank correlation of the plans' numbers, over all matrices", table)


def _legend(columns: Sequence[Compared], varied: Sequence[str]) -> list[str]:
    said = (
        "Differences are against the first column. A rank correlation is Spearman's, of the "
        "numbers of all matrices; a dash where a plan gives every matrix the same."
    )
    if not varied:
        return [said]
    counts = {one.over: one.plans for column in columns for one in column.stability or ()}
    how = {
        "estimators": "by other estimators",
        "resamples": f"from {counts.get('resamples')} resamples of the spectra",
        "halves": "from one half of the training samples against the other",
    }
    ways = ", ".join(how[over] for over in varied)
    return [
        f"{said} Stability is the mean rank correlation of a plan with those made {ways}, and the "
        "mean share of experts that move."
    ]


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
