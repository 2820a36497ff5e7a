"""Sharing out experts: budgets, strategies, and the plan that records a decision."""

from .budget import Budget
from .build import (
    build_plan,
    check_budget,
    components_needed,
    resolve_budget,
)
from .order import alike
from .plan import Plan
from .records import ModulePlan, PlanError, UnitPlan
from .registry import StrategyError, registry
from .request import AllocationRequest
from .spending import largest_remainder
from .strategy import CONTROLS, SAMPLED, Evidence, Options, Problem, Strategy, hookimpl

__all__ = [
    "CONTROLS",
    "SAMPLED",
    "AllocationRequest",
    "Budget",
    "Evidence",
    "ModulePlan",
    "Options",
    "Plan",
    "PlanError",
    "Problem",
    "Strategy",
    "StrategyError",
    "UnitPlan",
    "alike",
    "build_plan",
    "check_budget",
    "components_needed",
    "hookimpl",
    "largest_remainder",
    "registry",
    "resolve_budget",
]
