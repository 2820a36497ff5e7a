"""Whether a saved plan is one for what is asked."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from ..allocation import Plan
from ..allocation.optimizers import RULES
from .config import MIXTURE
from .request import PlanRequest, counted_optimizer, in_yaml, layers, uncounted


def check_plan(plan: Plan, request: PlanRequest) -> None:
    """Check that a saved plan is one for this model and these settings.

    Raises:
        ValueError: Names the first difference.
    """
    if plan.rank != request.rank:
        raise ValueError(
            f"the plan is for rank {plan.rank}, but lora_r is {request.rank}. Set "
            f"`lora_r: {plan.rank}`, or make the plan again with `alphalora plan --output`."
        )
    differ = [key for key in MIXTURE if getattr(plan, key) != getattr(request.mixture, key)]
    if differ:
        raise ValueError(
            "; ".join(
                f"the plan says {key} {in_yaml(getattr(plan, key))}, but alphalora.{key} is "
                f"{in_yaml(getattr(request.mixture, key))}"
                for key in differ
            )
        )
    if plan.base_model != request.base_model:
        warnings.warn(
            f"The plan was made for {plan.base_model} and is used for {request.base_model}.",
            stacklevel=2,
        )
    shapes, planned = layers(request), plan.shapes
    for name, shape in shapes.items():
        if name not in planned:
            raise ValueError(f"target module {name} is not in the plan (base_model, targets?)")
        if planned[name] != shape:
            raise ValueError(f"{name} is {shape} in the model, but {planned[name]} in the plan")
    stray = next((name for name in planned if name not in shapes), None)
    if stray is not None:
        raise ValueError(f"the plan has {stray}, which is no target module here")


def check_optimizer(plan: Plan, cfg: Mapping[str, Any]) -> None:
    """Check that a saved plan's budget in memory counts the optimizer of a configuration.

    Args:
        plan: The saved plan.
        cfg: As for `plan_request`.

    Raises:
        ValueError: If it counts another, or something trains that it does not count; says what.
    """
    counted = plan.budget["optimizer"]
    if counted is None:
        return
    missed = uncounted(cfg)
    if missed is None:
        found = counted_optimizer(cfg)
        if RULES.get(found, found) == RULES.get(counted, counted):  # as much for each matrix
            return
        missed = f"the state of `optimizer: {counted}`, but this run's is {found}"
    spend = ", spend: rank" if plan.spend == "rank" else ""
    raise ValueError(
        f"the plan's budget in memory counts {missed}. Take `plan` out and make a new one, or "
        f"take its numbers alone: `alphalora: {{allocation: {{strategy: counts, experts: PLAN}}"
        f"{spend}}}`"
    )
