"""Sharing out experts: budgets, strategies, and the plan that records a decision."""

from .budget import Budget, expert_parameters
from .build import AllocationRequest, Evidence, build_plan, check_budget, resolve_budget
from .hookspecs import hookimpl
from .plan import Plan
from .records import ModulePlan, PlanError, UnitPlan
from .registry import Registered, StrategyError, registry
from .spending import largest_remainder
from .strategy import Options, Problem, Strategy

__all__ = [
    "AllocationRequest",
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
    "check_budget",
    "expert_parameters",
    "hookimpl",
    "largest_remainder",
    "registry",
    "resolve_budget",
]
