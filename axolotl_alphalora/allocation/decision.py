"""Asking a strategy, and checking what it says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

from .budget import whole_if_exact
from .registry import Registered, StrategyError
from .strategy import Problem


@dataclass(frozen=True)
class Decision:
    """What a strategy decided.

    Attributes:
        numbers: Module name to number of experts.
        scores: Unit name to score, empty if it scored nothing.
    """

    numbers: Mapping[str, int]
    scores: Mapping[str, float]

    def unit_numbers(self, units: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Return the number of each unit's modules, their mean where they differ."""
        return {
            unit: whole_if_exact(Fraction(sum(self.numbers[name] for name in names), len(names)))
            for unit, names in units.items()
        }


def decide(registered: Registered, problem: Problem) -> Decision:
    """Let a strategy decide, and check that its decision fits the model and the budget.

    Raises:
        StrategyError: If it does not, or the strategy says that it cannot decide; names it.
    """
    name = registered.strategy.name
    try:
        scores = registered.score(problem)
        _check_scores(scores, problem)
        counts = registered.allocate(problem, scores)
        numbers = _by_module(counts, problem)
        check_numbers(numbers, problem)
    except Exception as error:
        package = "" if registered.built_in else f" of {registered.package}"
        said = str(error)
        if not isinstance(error, ValueError | TypeError):
            said = f"{type(error).__name__}: {error}"
        raise StrategyError(f"strategy {name!r}{package}: {said}") from error
    return Decision(numbers, {unit: float(scores[unit]) for unit in scores})


def _check_scores(scores: Mapping[str, Any], problem: Problem) -> None:
    if not scores:
        return
    _check_names(scores, problem.units, "score", "unit")
    for unit, value in scores.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"the score of {unit!r} is {value!r}, not a number")
        if not (math.isfinite(value) and float(value) >= 0):
            raise ValueError(f"the score of {unit!r} is {value}: it must be finite, 0 or larger")


def _by_module(counts: Mapping[str, Any], problem: Problem) -> dict[str, int]:
    """Return a number for each module, whether units or modules were decided on."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, Integral):
            raise TypeError(f"{name!r} gets {count!r} experts, which is no whole number")
        if count < 0:
            raise ValueError(f"{name!r} gets {count} experts: 0 is the fewest")
    by_module = all(name in counts for name in problem.shapes)
    if not by_module and any(name in problem.units for name in counts):
        _check_names(counts, problem.units, "number of experts", "unit")
        counts = {name: counts[unit] for unit, names in problem.units.items() for name in names}
    _check_names(counts, problem.shapes, "number of experts", "target module")
    return {name: int(counts[name]) for name in problem.shapes}


def _check_names(
    given: Mapping[str, Any], wanted: Mapping[str, Any], what: str, where: str
) -> None:
    missing = next((name for name in wanted if name not in given), None)
    if missing is not None:
        raise ValueError(f"{missing!r} has no {what}")
    stray = next((name for name in given if name not in wanted), None)
    if stray is not None:
        raise ValueError(f"{stray!r} has a {what} and is no {where} of this model")


def check_numbers(numbers: Mapping[str, int], problem: Problem) -> None:
    """Check that numbers keep to the bounds and the budget.

    Args:
        numbers: Module name to number of experts.
        problem: What was to be decided.

    Raises:
        ValueError: If they do not; names the first module, or the budget.
    """
    budget, costs = problem.budget, problem.costs
    for name, number in numbers.items():
        if number < budget.min_experts:
            hint = "" if number else ": set min_experts to 0 if layers may be left alone"
            raise ValueError(
                f"{name} gets {number} experts, fewer than min_experts {budget.min_experts}{hint}"
            )
        if budget.max_experts is not None and number > budget.max_experts:
            raise ValueError(
                f"{name} gets {number} experts, more than max_experts {budget.max_experts}"
            )
    if costs.limit is None:
        return
    spent = costs.total(numbers)
    if spent > costs.limit:
        raise ValueError(
            f"its experts cost {costs.amount(spent):g}, more than the budget of "
            f"{budget.kind} {budget.amount:g} ({costs.amount(costs.limit):g})"
        )
    left = costs.limit - spent
    # In memory, what the next expert costs is known from above only.
    known = budget.kind != "memory_mib"
    if known and left and left >= max(_next_experts(numbers, problem), default=math.inf):
        raise ValueError(
            f"its experts cost {costs.amount(spent):g} of {costs.amount(costs.limit):g}, which "
            "leaves room for more: spend the whole budget, for example with problem.spend"
        )
    capped = all(number == budget.max_experts for number in numbers.values())
    if spent < costs.limit and capped and budget.kind in ("experts_per_block", "total_experts"):
        raise ValueError(
            f"the budget is {costs.amount(costs.limit):g} experts, but max_experts "
            f"{budget.max_experts} admits {costs.amount(spent):g} only"
        )


def _next_experts(numbers: Mapping[str, int], problem: Problem) -> Iterator[int]:
    """What one expert more would cost each unit that may have one."""
    costs, most = problem.costs, problem.budget.max_experts
    for modules in problem.units.values():
        if most is None or all(numbers[name] < most for name in modules):
            yield costs.total({name: numbers[name] + 1 for name in modules}) - costs.total(
                {name: numbers[name] for name in modules}
            )
