"""The budget that a plan hands on to plans by other strategies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..allocation import Plan
from ..planning import PlanRequest

__all__ = ["common_budget", "taken_budget"]


def common_budget(given: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Return the budget for other plans that shall cost what a plan does.

    Args:
        given: The budget that the plan was asked for with.
        plan: The plan.

    Returns:
        The same, if the plan had a budget; otherwise what it comes to, as experts, or as parameters
        where these are no whole number. Modules may be left alone then if the plan leaves some.
    """
    if plan.budget["kind"] is not None:
        return dict(given)
    budget = dict(given)
    if not all(plan.numbers.values()):
        budget["min_experts"] = 0
    total = plan.total_experts
    if total == int(total):
        return budget | {"total_experts": int(total)}
    return budget | {"total_parameters": plan.trainable_parameters}


def taken_budget(request: PlanRequest, budget: Mapping[str, Any]) -> dict[str, Any]:
    """Return a budget as a request's strategy takes it: one with numbers of its own takes none."""
    return {} if request.settings.budget_use == "none" else dict(budget)
