"""Building a plan: a strategy decides, and its decision is checked and written down."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from axolotl_alphalora.allocation.budget import Budget
from axolotl_alphalora.allocation.costs import Costs
from axolotl_alphalora.allocation.decision import Decision, check_numbers, decide
from axolotl_alphalora.allocation.plan import ModulePlan, Plan, UnitPlan
from axolotl_alphalora.allocation.registry import Registered, StrategyError, registry
from axolotl_alphalora.allocation.strategy import Options, Problem
from axolotl_alphalora.blocks import group_by_unit

if TYPE_CHECKING:
    from axolotl_alphalora.spectral.quality import MatrixQuality

__all__ = ["Evidence", "build_plan", "check_budget", "granularity_of", "resolve_budget"]

DEFAULT_EXPERTS_PER_BLOCK = 5.0
"""The budget where a strategy needs one and none is given: AlphaLoRA's."""


@dataclass(frozen=True)
class Evidence:
    """What was measured of a model, as far as a strategy needs it.

    Attributes:
        weights: What the source of the weights says about itself: plain JSON values.
        alphas: Unit name to the mean alpha of its matrices.
        qualities: What was measured of each matrix.
        intervals: Unit name to the interval of its alpha.
        sensitivities: Task to module name to the sum of squared gradients over its samples.
        sample: What those were measured on: ``tasks``, ``seed`` and ``digest``.
    """

    weights: Mapping[str, Any] = field(default_factory=lambda: {"source": "none"})
    alphas: Mapping[str, float] = field(default_factory=dict)
    qualities: tuple[MatrixQuality, ...] = ()
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    sensitivities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    sample: Mapping[str, Any] | None = None


def granularity_of(options: Options) -> str:
    """Return in which units a strategy counts experts; blocks, unless its options say otherwise."""
    return getattr(options, "granularity", "block")


def resolve_budget(name: str, options: Options, given: Mapping[str, Any]) -> Budget:
    """Make the budget that a strategy gets.

    Args:
        name: The strategy's name.
        options: Its options.
        given: Fields of :class:`~axolotl_alphalora.allocation.budget.Budget` that were set.

    Raises:
        ValueError: If two amounts are given, one is out of range, or the strategy takes none.
    """
    set_fields = {key: value for key, value in given.items() if value is not None}
    if options.budget_use == "none":
        if set_fields:
            raise ValueError(
                f"strategy {name!r} says itself how many experts there are: remove "
                f"{', '.join(set_fields)}"
            )
        return Budget(min_experts=0)
    budget = Budget(**set_fields)
    if budget.kind is None and options.budget_use == "needed":
        budget = replace(budget, experts_per_block=DEFAULT_EXPERTS_PER_BLOCK)
    options.check_budget(budget)
    return budget


def check_budget(
    shapes: Mapping[str, tuple[int, int]],
    *,
    strategy: str,
    options: Mapping[str, Any],
    budget: Mapping[str, Any],
    rank: int,
    spend: str,
    optimizer: str | None,
) -> None:
    """Check that a budget can be spent on a model, before anything is measured.

    Args:
        shapes: As for :func:`build_plan`, like the rest.
        strategy: Name of the strategy.
        options: Its options.
        budget: The budget.
        rank: LoRA rank of an expert.
        spend: What it is spent on.
        optimizer: Name of the optimizer.

    Raises:
        ValueError: If it cannot; says what would do.
    """
    problem = _problem(
        registry().get(strategy), shapes, options, budget, rank, spend, optimizer, Evidence()
    )
    if problem.costs.limit is not None:
        evenly = problem.spend(dict.fromkeys(problem.units, 1.0))
        numbers = {name: evenly[unit] for unit, names in problem.units.items() for name in names}
        check_numbers(numbers, problem)


def build_plan(
    *,
    base_model: str,
    shapes: Mapping[str, tuple[int, int]],
    strategy: str = "alphalora",
    options: Mapping[str, Any] | None = None,
    budget: Mapping[str, Any] | None = None,
    evidence: Evidence | None = None,
    top_k: int = 2,
    rank: int = 8,
    spend: str = "experts",
    optimizer: str | None = None,
) -> Plan:
    """Let a strategy share out experts and write down the plan.

    Args:
        base_model: Directory or repository id of the model.
        shapes: Exact name of every linear layer to adapt to its output features and input
            features, as the layer is applied.
        strategy: Name of the strategy.
        options: Its options that differ from the defaults.
        budget: Fields of :class:`~axolotl_alphalora.allocation.budget.Budget` that were set.
        evidence: What was measured, as far as the strategy needs it.
        top_k: Experts that a token is sent to, where there are as many.
        rank: LoRA rank of an expert.
        spend: ``"experts"``, or ``"rank"``: one expert of N times the rank instead of N experts.
        optimizer: Axolotl's name of the optimizer, which a memory budget counts.

    Raises:
        ValueError: If the strategy, an option or the budget is not usable, ``top_k`` or ``rank``
            is below 1, or evidence is missing for a unit.
        StrategyError: If what the strategy returns does not fit the model or the budget; names it.
    """
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}: it must be at least 1")
    found = registry().get(strategy)
    known = evidence or Evidence()
    problem = _problem(found, shapes, options or {}, budget or {}, rank, spend, optimizer, known)
    units, costs = problem.units, problem.costs
    _check_evidence(found, problem)
    decision = decide(found, problem)
    plan = Plan(
        base_model=base_model,
        weights=dict(known.weights),
        strategy={
            "name": strategy,
            "package": found.package,
            "options": problem.options.model_dump(mode="json"),
        },
        sample=None if known.sample is None else deepcopy(dict(known.sample)),
        budget=_as_spent(problem.budget, costs, decision, optimizer),
        spend=spend,
        top_k=top_k,
        rank=rank,
        units=tuple(
            UnitPlan(unit, decision.scores.get(unit), experts, known.intervals.get(unit))
            for unit, experts in decision.unit_numbers(units).items()
        ),
        modules=tuple(
            _module(name, shape, decision.numbers[name], rank, spend, problem)
            for name, shape in shapes.items()
        ),
    )
    if not any(plan.counts.values()):
        raise StrategyError(
            f"strategy {strategy!r} gives no module an expert: there is nothing to train"
        )
    return plan


def _problem(
    found: Registered,
    shapes: Mapping[str, tuple[int, int]],
    options: Mapping[str, Any],
    budget: Mapping[str, Any],
    rank: int,
    spend: str,
    optimizer: str | None,
    evidence: Evidence,
) -> Problem:
    if rank < 1:
        raise ValueError(f"rank is {rank}: it must be at least 1")
    if spend not in ("experts", "rank"):
        raise ValueError(f"spend is {spend!r}: it must be experts or rank")
    if not shapes:
        raise ValueError("there are no modules to plan for")
    settings = found.options(options)
    resolved = resolve_budget(found.strategy.name, settings, budget)
    units = group_by_unit(shapes, granularity_of(settings))
    return Problem(
        shapes=dict(shapes),
        units=units,
        options=settings,
        budget=resolved,
        costs=Costs(shapes, units, rank, spend, resolved, optimizer),  # type: ignore[arg-type]
        alphas={unit: float(alpha) for unit, alpha in evidence.alphas.items()},
        qualities={row.module: row for row in evidence.qualities},
        sensitivities=evidence.sensitivities,
    )


def _check_evidence(found: Registered, problem: Problem) -> None:
    """Check that what the strategy needs was measured for everything it decides on."""
    needs = found.strategy.needs
    if needs == "quality":
        for unit in problem.units:
            if unit not in problem.alphas:
                raise ValueError(f"{unit!r} has modules to adapt but no alpha")
        for unit in problem.alphas:
            if unit not in problem.units:
                raise ValueError(f"{unit!r} has an alpha but no module to adapt")
    if needs == "sensitivity" and not problem.sensitivities:
        raise ValueError(f"strategy {found.strategy.name!r} needs sensitivities")
    for task, values in problem.sensitivities.items():
        missing = next((name for name in problem.shapes if name not in values), None)
        if missing is not None:
            raise ValueError(f"{missing} has no sensitivity in the task {task!r}")


def _as_spent(
    budget: Budget, costs: Costs, decision: Decision, optimizer: str | None
) -> dict[str, Any]:
    """Return the budget as a plan records it: what was asked for, and what was spent."""
    record: dict[str, Any] = {
        "kind": None,
        "asked": None,
        "spent": None,
        "unspent": None,
        "min_experts": budget.min_experts,
        "max_experts": budget.max_experts,
        "optimizer": None,
    }
    if costs.limit is None:
        return record
    # A mean number of experts was turned into a total.
    kind = "total_experts" if budget.kind == "experts_per_block" else budget.kind
    spent = costs.total(decision.numbers)
    return record | {
        "kind": kind,
        "asked": costs.asked,
        "spent": costs.amount(spent),
        "unspent": costs.amount(costs.limit - spent),
        "optimizer": optimizer if kind == "memory_mib" else None,
    }


_MEASURED = {field.name for field in fields(ModulePlan)} - {
    "name",
    "shape",
    "experts",
    "rank",
    "sensitivity",
}


def _module(
    name: str, shape: tuple[int, int], number: int, rank: int, spend: str, problem: Problem
) -> ModulePlan:
    size = (int(shape[0]), int(shape[1]))
    experts, each = number, rank
    if spend == "rank" and number:
        experts, each = 1, rank * number
    sensitivity = {task: values[name] for task, values in problem.sensitivities.items()}
    quality = problem.qualities.get(name)
    measured = {} if quality is None else {key: getattr(quality, key) for key in _MEASURED}
    return ModulePlan(name, size, experts, each, sensitivity or None, **measured)
