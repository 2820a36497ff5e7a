"""Sharing out experts: budgets, strategies, and the plan that records a decision."""

from .budget import Budget, expert_parameters
from .build import AllocationRequest, build_plan, check_budget, resolve_budget
from .order import alike
from .plan import Plan
from .records import ModulePlan, PlanError, UnitPlan
from .registry import StrategyError, registry
from .spending import largest_remainder
from .strategy import CONTROLS, Evidence, Options, Problem, Strategy, hookimpl

__all__ = [
    "CONTROLS",
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
    "expert_parameters",
    "hookimpl",
    "largest_remainder",
    "registry",
    "resolve_budget",
]
