"""Sharing experts between decoder blocks, and the plan that records it."""

from axolotl_alphalora.allocation.alphalora import allocate
from axolotl_alphalora.allocation.build import build_plan
from axolotl_alphalora.allocation.parameters import expert_parameters
from axolotl_alphalora.allocation.plan import BlockPlan, ModulePlan, Plan
from axolotl_alphalora.allocation.reading import PlanError
from axolotl_alphalora.allocation.rounding import largest_remainder
from axolotl_alphalora.allocation.strategies import STRATEGIES, Budget, Strategy, resolve_options

__all__ = [
    "STRATEGIES",
    "BlockPlan",
    "Budget",
    "ModulePlan",
    "Plan",
    "PlanError",
    "Strategy",
    "allocate",
    "build_plan",
    "expert_parameters",
    "largest_remainder",
    "resolve_options",
]
