"""Several plans for one model, all of one budget, side by side; and how stable each of them is."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from statistics import StatisticsError, correlation, fmean
from typing import TYPE_CHECKING

from ..allocation import Budget, Plan
from ..allocation.budget import Costs
from ..blocks import block_name, group_by_block
from ..progress import working
from .planner import Measured, Planner, plan_from_samples, plan_from_spectra
from .request import PlanRequest
from .source import AS_GIVEN, Source, changed, common_budget, with_budget

if TYPE_CHECKING:
    from ..spectral import Measurement
    from .planner import OfSamples

Numbers = Mapping[str, int]
"""Module name to the number that a plan gives it."""


@dataclass(frozen=True)
class Stability:
    """How far a plan and those made from varied evidence agree.

    Attributes:
        over: What was varied: `estimators`, `resamples` or `halves`.
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


RESAMPLES = 20
"""Resamples of the spectra over which a plan's stability is taken."""

_ESTIMATORS = ("xmin_peak", "hill", "ks")
_LIKE = {"weightwatcher": "ks"}
"""Estimators that give the same alphas as another."""

Variant = Callable[[], Plan]


@dataclass(frozen=True)
class Compared:
    """One plan of a comparison.

    Attributes:
        label: Its heading.
        plan: The plan.
        stability: How far it stays the same when its evidence varies: empty where it rests on
            none, None where that is not known, as for a saved plan, or not asked: for a control.
        own: Whether it is the source's own plan.
    """

    label: str
    plan: Plan
    stability: tuple[Stability, ...] | None
    own: bool = False


def compare_plans(
    source: Source, specs: Sequence[str], planner: Planner, own_label: str = AS_GIVEN
) -> list[Compared]:
    """Make the plans of a comparison.

    The source's own plan comes first, unless a specification asks for the same; then the
    specifications in order. All have the source's budget. Where it has none, since its strategy has
    numbers of its own, the others get what its plan costs.

    Args:
        source: What is planned.
        specs: Specifications, see `read_spec`.
        planner: Makes the plans.
        own_label: Heading of the source's own plan.

    Raises:
        ValueError: If a specification is wrong, a plan cannot be made, or a strategy that takes no
            budget costs something else.
    """
    given = source.request
    requests = {spec: changed(given, spec) for spec in specs}
    for spec, request in requests.items():
        try:
            planner.check(request)
        except ValueError as error:
            raise ValueError(f"{spec}: {error}") from error
    same = [
        spec
        for spec, request in requests.items()
        if request.strategy == given.strategy and request.settings == given.settings
    ]
    own = *planner.settled(source), given
    budget = common_budget(given.budget, own[0])
    columns = {} if same else {own_label: own}
    for spec, request in requests.items():
        if spec in same:
            columns[spec] = own
        else:
            wanted = with_budget(request, budget)
            plan, measured = planner.plan(wanted)
            _check_cost(spec, wanted, plan, budget, own[0])
            columns[spec] = (plan, measured, wanted)
    return [
        Compared(label, plan, _stability(plan, measured, request, planner), own=plan is own[0])
        for label, (plan, measured, request) in columns.items()
    ]


def changed_blocks(plan: Plan, other: Plan) -> int:
    """Return in how many blocks any module has another number."""
    numbers, others = plan.numbers, other.numbers
    return len({block_name(name) for name in numbers if numbers[name] != others[name]})


def _check_cost(spec: str, request: PlanRequest, plan: Plan, budget: Budget, own: Plan) -> None:
    """Refuse a plan that took no budget, and costs neither that nor what the source's plan does."""
    if request.settings.budget_use != "none":
        return
    units = {name: [name] for name in plan.shapes}
    costs = Costs(
        plan.shapes,
        units,
        request.rank,
        request.spend,
        budget,
        request.optimizer,
        request.mixture,
    )
    assert costs.limit is not None
    spent = costs.total(plan.numbers)
    if spent not in (costs.limit, costs.total(own.numbers)):
        raise ValueError(
            f"{spec}: the plans of a comparison have one budget, {budget.recorded_kind} "
            f"{costs.amount(costs.limit):,}, but {request.strategy} takes none and comes to "
            f"{costs.amount(spent):,}: change its numbers, or the budget"
        )


def _stability(
    plan: Plan, measured: Measured, request: PlanRequest, planner: Planner
) -> tuple[Stability, ...] | None:
    """Say how far a plan stays the same when its evidence varies, see `Compared`.

    A plan that goes by spectra is compared with those of the other estimators and with those of
    resampled spectra; one that goes by training samples has the plans of their two halves compared
    with each other. Variants for which no plan can be made are left out.
    """
    from ..activations import ExplainedVariance
    from ..sensitivity import Sensitivity

    if request.needs == "nothing":
        return ()
    if measured is None or plan.control:
        return None
    if isinstance(measured, Sensitivity | ExplainedVariance):
        halves = _made(partial(_of_half, plan, measured, request, which) for which in (0, 1))
        known = [stability("halves", halves[0], halves[1:])] if len(halves) == 2 else []
    else:
        varied = {
            "estimators": _made(_estimators(request, planner)),
            "resamples": _made(_resamples(plan, measured, request, planner)),
        }
        known = [stability(over, plan.numbers, others) for over, others in varied.items()]
    return tuple(one for one in known if one is not None) or None


def _made(variants: Iterable[Variant]) -> list[dict[str, int]]:
    """Return the numbers of those plans that can be made."""
    numbers = []
    for make in variants:
        try:
            numbers.append(make().numbers)
        except ValueError:
            continue
    return numbers


def _estimators(request: PlanRequest, planner: Planner) -> Iterator[Variant]:
    used = getattr(request.settings, "estimator", None)
    if used is None:
        return
    for name in _ESTIMATORS:
        if name != _LIKE.get(used, used):
            other = replace(request, options={**request.options, "estimator": name})
            yield partial(_plan, planner, other)


def _plan(planner: Planner, request: PlanRequest) -> Plan:
    return planner.plan(request)[0]


def _resamples(
    plan: Plan, measured: Measurement, request: PlanRequest, planner: Planner
) -> Iterator[Variant]:
    from ..spectral import resampled_scores

    if measured.settings.estimator == "weightwatcher":
        return
    with working(planner.console) as task:
        step = task("Resampling")([row.module for row in measured.matrices])
        drawn = resampled_scores(measured, RESAMPLES, progress=step)
    for scores in drawn:
        yield partial(plan_from_spectra, request, plan.shapes, measured, scores=scores)


def _of_half(plan: Plan, measured: OfSamples, request: PlanRequest, which: int) -> Plan:
    half = measured.half(which)
    return plan_from_samples(request, plan.shapes, half, plan.weights, plan.sample)
