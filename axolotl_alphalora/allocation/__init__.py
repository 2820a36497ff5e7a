"""Sharing out experts: budgets, strategies, and the plan that records a decision."""

from axolotl_alphalora.allocation.budget import Budget
from axolotl_alphalora.allocation.build import (
    Evidence,
    build_plan,
    check_budget,
    granularity_of,
    resolve_budget,
)
from axolotl_alphalora.allocation.cautions import cautions
from axolotl_alphalora.allocation.hookspecs import hookimpl
from axolotl_alphalora.allocation.parameters import expert_parameters
from axolotl_alphalora.allocation.plan import ModulePlan, Plan, UnitPlan
from axolotl_alphalora.allocation.reading import PlanError
from axolotl_alphalora.allocation.registry import Registered, StrategyError, registry
from axolotl_alphalora.allocation.rounding import largest_remainder
from axolotl_alphalora.allocation.strategy import Options, Problem, Strategy

__all__ = [
    "Budget",
    "Evidence",
    "ModulePlan",
    "Options",
    "Plan",
    "PlanError",
    "Problem",
    "Registered",
    "Strategy",
    "StrategyError",
    "UnitPlan",
    "build_plan",
    "cautions",
    "check_budget",
    "expert_parameters",
    "granularity_of",
    "hookimpl",
    "largest_remainder",
    "registry",
    "resolve_budget",
]
