"""Whether the parts of a plan agree: a file may have been edited."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from axolotl_alphalora.allocation.reading import PlanError, read_number
from axolotl_alphalora.blocks import GRANULARITIES, group_by_unit

if TYPE_CHECKING:
    from axolotl_alphalora.allocation.plan import Plan

__all__ = ["check_consistency"]


def check_consistency(plan: Plan, document: Mapping[str, Any]) -> None:
    """Check that ranks, units and totals follow from what a plan says about its modules.

    Args:
        plan: The plan that was read.
        document: What it was read from, which also holds the totals.

    Raises:
        PlanError: If they do not; names the key.
    """
    for i, module in enumerate(plan.modules):
        fits = module.rank == plan.rank
        if plan.spend == "rank" and module.experts:
            fits = module.experts == 1 and module.rank % plan.rank == 0
        if not fits:
            raise PlanError(
                f"modules[{i}] has {module.experts} experts of rank {module.rank}, which is not "
                f"how rank {plan.rank} is spent on {plan.spend}"
            )
    _check_units(plan)
    for key, computed in (
        ("total_experts", plan.total_experts),
        ("module_experts", plan.module_experts),
        ("trainable_parameters", plan.trainable_parameters),
    ):
        if read_number(document[key], key) != computed:
            raise PlanError(
                f"{key} is {document[key]}, but the counts in the plan give {computed}: "
                "the plan has been edited; write it anew"
            )


def _check_units(plan: Plan) -> None:
    numbers = plan.numbers
    listed = [unit.name for unit in plan.units]
    grouped = [group_by_unit(numbers, granularity) for granularity in GRANULARITIES]
    units = next((found for found in grouped if list(found) == listed), None)
    if units is None:
        raise PlanError(
            "units are neither the modules' blocks, nor parts of them, nor single modules: the "
            "plan has been edited; write it anew"
        )
    for i, unit in enumerate(plan.units):
        names = units[unit.name]
        mean = Fraction(sum(numbers[name] for name in names), len(names))
        if unit.experts != float(mean):
            raise PlanError(
                f"units[{i}].experts is {unit.experts}, but its modules have {float(mean):g}: the "
                "plan has been edited; write it anew"
            )
