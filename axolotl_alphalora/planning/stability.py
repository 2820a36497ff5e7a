"""How far a plan stays the same when what it rests on varies."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import StatisticsError, correlation, fmean

from ..blocks import group_by_block

Numbers = Mapping[str, int]
"""Module name to the number that a plan gives it."""


@dataclass(frozen=True)
class Stability:
    """How far a plan and those made from varied evidence agree.

    Attributes:
        over: What was varied: ``estimators``, ``resamples`` or ``halves``.
        plans: Number of the varied plans.
        rank_correlation: Their mean rank correlation with the plan, None if the plan gives every
            module the same.
        moved: Mean share of the plan's experts that are elsewhere.
    """

    over: str
    plans: int
    rank_correlation: float | None
    moved: float


def stability(over: str, plan: Numbers, others: Sequence[Numbers]) -> Stability | None:
    """Compare a plan with those made from varied evidence.

    A varied plan that gives every module the same has no ranks and counts with a correlation of 0.

    Args:
        over: What was varied.
        plan: The plan's numbers.
        others: Those of the varied plans.

    Returns:
        None if there are no varied plans.
    """
    if not others:
        return None
    ranked = len(set(plan.values())) > 1
    total = moved_experts(plan, dict.fromkeys(plan, 0))
    return Stability(
        over,
        len(others),
        fmean(rank_correlation(plan, other) or 0.0 for other in others) if ranked else None,
        fmean(moved_experts(plan, other) / total for other in others),
    )


def rank_correlation(first: Mapping[str, float], second: Mapping[str, float]) -> float | None:
    """Return Spearman's rank correlation over the first's names; None where one is constant."""
    try:
        return correlation(_ranks(first.values()), _ranks(second[name] for name in first))
    except StatisticsError:
        return None


def _ranks(values: Iterable[float]) -> list[int]:
    """Twice the rank of each value, but for a constant; equal ones share theirs."""
    values = list(values)
    ordered = sorted(values)
    return [bisect_left(ordered, value) + bisect_right(ordered, value) for value in values]


def moved_experts(plan: Numbers, other: Numbers) -> float:
    """Return how many experts a plan has where another has fewer.

    As in a budget, a block whose modules have n experts each has n: an expert of a module counts as
    one divided by the modules of its block.
    """
    return float(
        sum(
            Fraction(sum(max(0, plan[name] - other[name]) for name in names), len(names))
            for names in group_by_block(plan).values()
        )
    )
