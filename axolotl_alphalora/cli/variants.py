"""The plans that other evidence of the same kind would have given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ..allocation import Plan
from ..planning import PlanRequest, build, quality_evidence, sensitivity_evidence
from ..progress import working
from .planner import Planner, shapes_of
from .stability import Stability, stability

if TYPE_CHECKING:
    from ..planning import Found
    from ..sensitivity import Sensitivity
    from ..spectral import Measurement

__all__ = ["RESAMPLES", "stabilities"]

RESAMPLES = 20
"""Resamples of the spectra over which a plan's stability is taken."""

_ESTIMATORS = ("xmin_peak", "hill", "ks")
_LIKE = {"weightwatcher": "ks"}
"""Estimators that give the same alphas as another."""


def stabilities(
    plan: Plan, found: Found, request: PlanRequest, planner: Planner
) -> tuple[Stability, ...]:
    """Say how far a plan stays the same when its evidence varies.

    A plan that goes by spectra is compared with those of the other estimators and with those of
    resampled spectra; one that goes by gradients has the plans of the two halves of its sample
    compared with each other. Variants for which no plan can be made are left out.

    Args:
        plan: The plan.
        found: What it rests on.
        request: What was asked for.
        planner: Makes plans.

    Returns:
        One for each way to vary the evidence that gives a plan.
    """
    from ..sensitivity import Sensitivity

    if isinstance(found, Sensitivity):
        halves = _made(_halves(plan, found, request))
        known = [stability("halves", halves[0], halves[1:])] if len(halves) == 2 else []
    elif found is not None:
        known = [
            stability("estimators", plan.numbers, _made(_estimators(request, planner))),
            stability("resamples", plan.numbers, _made(_resamples(plan, found, request, planner))),
        ]
    else:
        known = []
    return tuple(one for one in known if one is not None)


Variant = Callable[[], Plan]


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
    plan: Plan, found: Measurement, request: PlanRequest, planner: Planner
) -> Iterator[Variant]:
    from ..spectral import resampled_scores

    if found.settings.estimator == "weightwatcher":
        return
    with working(planner.console) as doing:
        step = doing("Resampling")([row.module for row in found.matrices])
        drawn = resampled_scores(found, RESAMPLES, progress=step)
    evidence = quality_evidence(found)
    for scores in drawn:
        yield partial(build, request, shapes_of(plan), replace(evidence, alphas=scores), found)


def _halves(plan: Plan, found: Sensitivity, request: PlanRequest) -> Iterator[Variant]:
    for which in (0, 1):
        yield partial(_of_half, plan, found, request, which)


def _of_half(plan: Plan, found: Sensitivity, request: PlanRequest, which: int) -> Plan:
    assert plan.sample is not None
    evidence = sensitivity_evidence(found.half(which), plan.weights, plan.sample)
    return build(request, shapes_of(plan), evidence)
