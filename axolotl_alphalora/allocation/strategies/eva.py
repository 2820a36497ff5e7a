"""EVA: experts where more components of a layer's inputs explain much of their variance."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from statistics import fmean
from typing import Literal

from pydantic import Field

from ..strategy import DEFAULT_RHO, Problem, SampledOptions, Strategy, hookimpl


class EvaOptions(SampledOptions):
    """How explained variances are measured, and in which units experts are counted."""

    rho: float = Field(
        DEFAULT_RHO,
        ge=1,
        allow_inf_nan=False,
        description="how much is measured of each layer: rho times the mean number of experts",
    )
    granularity: Literal["block", "group", "module"] = Field(
        "module", description="what shares a number: a block, its attention or MLP, a module"
    )


@hookimpl
def register_strategy() -> Strategy:
    """Describe the strategy."""
    return Strategy(
        name="eva",
        summary="more experts where more components of the inputs explain much of their variance",
        options=EvaOptions,
        needs="activations",
        reference="EVA, arXiv 2410.07170",
    )


@hookimpl
def score(problem: Problem) -> dict[str, float]:
    """Return how much of its modules' inputs is explained by all that was measured, on average."""
    return {unit: math.fsum(values) for unit, values in _values(problem).items()}


@hookimpl
def allocate(problem: Problem) -> dict[str, int]:
    """Give out experts one by one, the one that explains most first.

    EVA pools the explained-variance ratios of the first rho * r components of all layers, keeps
    the largest until its budget of ranks is spent, and counts them for each layer. Here r of them
    at a time are an expert: the n-th expert of a unit is worth what components (n - 1) r + 1 to n r
    explain, averaged over its modules. Every unit has the minimum first. An expert that the rest of
    the budget does not pay for is passed over, and with it the unit's later ones, which are worth
    less. Ties, and experts beyond what was measured, go to the unit with fewer, then the earlier.
    """
    values = _values(problem)
    costs, budget = problem.costs, problem.budget
    if costs.limit is None:
        raise ValueError("there is no budget to spend")
    costs.check_minimum(budget.min_experts)
    counts = dict.fromkeys(problem.units, budget.min_experts)
    left = costs.limit - sum(costs.of(unit, count) for unit, count in counts.items())

    def offer(place: int, unit: str) -> tuple[float, int, int, str]:
        count = counts[unit]
        worth = values[unit][count] if count < len(values[unit]) else 0.0
        return -worth, count, place, unit

    offers = [offer(place, unit) for place, unit in enumerate(problem.units)]
    heapq.heapify(offers)
    while offers:
        _, count, place, unit = heapq.heappop(offers)
        price = costs.of(unit, count + 1) - costs.of(unit, count)
        if price > left or count == budget.max_experts:
            continue
        counts[unit] += 1
        left -= price
        heapq.heappush(offers, offer(place, unit))
    return counts


def _values(problem: Problem) -> dict[str, list[float]]:
    """What the first, second, ... expert of each unit explains, averaged over its modules."""
    known: Mapping[str, tuple[float, ...]] = problem.explained_variances
    return {
        unit: [fmean(values) for values in zip(*(known[name] for name in names), strict=True)]
        for unit, names in problem.units.items()
    }
