"""Building a plan: a strategy decides, and its decision is checked and written down."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from ..blocks import group_by_unit
from ..settings import MatrixQuality
from .budget import Budget, Costs
from .decision import Decision, check_numbers, decide
from .plan import Plan
from .records import BudgetRecord, ModulePlan, UnitPlan
from .registry import Registered, StrategyError, registry
from .strategy import Needs, Options, Problem

DEFAULT_EXPERTS_PER_BLOCK = 5.0
"""The budget where a strategy needs one and none is given: AlphaLoRA's."""


@dataclass(frozen=True, kw_only=True)
class AllocationRequest:
    """How experts are to be shared out: all that a plan depends on but layers and evidence.

    Attributes:
        base_model: Directory or repository id of the model.
        strategy: Name of the strategy.
        options: Its options, as far as they were given.
        budget: What may be spent; None if nothing was said about it.
        spend: ``"experts"``, or ``"rank"``: one expert of N times the rank instead of N experts.
        top_k: Experts that a token is sent to, where there are as many.
        rank: LoRA rank of an expert.
        optimizer: Axolotl's name of the optimizer, which a memory budget counts.

    Raises:
        ValueError: If ``top_k`` or ``rank`` is below 1, or ``spend`` is neither.
    """

    base_model: str
    strategy: str = "alphalora"
    options: Mapping[str, Any] = field(default_factory=dict)
    budget: Budget | None = None
    spend: Literal["experts", "rank"] = "experts"
    top_k: int = 2
    rank: int = 8
    optimizer: str | None = None

    def __post_init__(self) -> None:
        for name in ("top_k", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.spend not in ("experts", "rank"):
            raise ValueError(f"spend is {self.spend!r}: it must be experts or rank")

    @property
    def registered(self) -> Registered:
        """The strategy.

        Raises:
            StrategyError: If there is none of that name.
        """
        return registry().get(self.strategy)

    @property
    def needs(self) -> Needs:
        """What the strategy needs to have measured: nothing, quality or sensitivity."""
        return self.registered.strategy.needs

    @cached_property
    def settings(self) -> Options:
        """The strategy's options with the defaults filled in.

        Raises:
            ValueError: If an option is unknown or wrong; names strategy and option.
        """
        return self.registered.options(self.options)

    @property
    def granularity(self) -> str:
        """In which units the strategy counts experts: blocks, unless its options say otherwise."""
        return getattr(self.settings, "granularity", "block")


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


def resolve_budget(name: str, options: Options, given: Budget | None) -> Budget:
    """Make the budget that a strategy gets.

    Args:
        name: The strategy's name.
        options: Its options.
        given: What was said about the budget.

    Raises:
        ValueError: If the strategy takes no budget, or not this one.
    """
    if options.budget_use == "none":
        if given is not None:
            raise ValueError(
                f"strategy {name!r} says itself how many experts there are: remove "
                f"{', '.join(given.named)}"
            )
        return Budget(min_experts=0)
    budget = given or Budget()
    if budget.kind is None and options.budget_use == "needed":
        budget = replace(budget, experts_per_block=DEFAULT_EXPERTS_PER_BLOCK)
    options.check_budget(budget)
    return budget


def check_budget(request: AllocationRequest, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Check that a budget can be spent on a model, before anything is measured.

    Args:
        request: What is asked for.
        shapes: As for :func:`build_plan`.

    Raises:
        ValueError: If it cannot; says what would do.
    """
    problem = _problem(request, shapes, Evidence())
    if problem.costs.limit is not None:
        evenly = problem.spend(dict.fromkeys(problem.units, 1.0))
        numbers = {name: evenly[unit] for unit, names in problem.units.items() for name in names}
        check_numbers(numbers, problem)


def build_plan(
    request: AllocationRequest,
    shapes: Mapping[str, tuple[int, int]],
    evidence: Evidence | None = None,
) -> Plan:
    """Let a strategy share out experts and write down the plan.

    Args:
        request: What is asked for.
        shapes: Exact name of every linear layer to adapt to its output features and input
            features, as the layer is applied.
        evidence: What was measured, as far as the strategy needs it.

    Raises:
        ValueError: If the strategy, an option or the budget is not usable, or evidence is missing
            for a unit.
        StrategyError: If what the strategy returns does not fit the model or the budget; names it.
    """
    known = evidence or Evidence()
    problem = _problem(request, shapes, known)
    registered = request.registered
    _check_evidence(registered, problem)
    decision = decide(registered, problem)
    if not any(decision.numbers.values()):
        raise StrategyError(
            f"strategy {request.strategy!r} gives no module an expert: there is nothing to train"
        )
    return Plan(
        base_model=request.base_model,
        weights=dict(known.weights),
        strategy={
            "name": request.strategy,
            "package": registered.package,
            "options": problem.options.model_dump(mode="json"),
        },
        sample=known.sample and deepcopy(dict(known.sample)),  # type: ignore[arg-type]
        budget=_as_spent(problem, decision, request.optimizer),
        spend=request.spend,
        top_k=request.top_k,
        rank=request.rank,
        units=tuple(
            UnitPlan(
                name=unit,
                score=decision.scores.get(unit),
                experts=experts,
                interval=known.intervals.get(unit),
            )
            for unit, experts in decision.unit_numbers(problem.units).items()
        ),
        modules=tuple(_module(name, decision.numbers[name], request, problem) for name in shapes),
    )


def _problem(
    request: AllocationRequest, shapes: Mapping[str, tuple[int, int]], evidence: Evidence
) -> Problem:
    if not shapes:
        raise ValueError("there are no modules to plan for")
    budget = resolve_budget(request.strategy, request.settings, request.budget)
    units = group_by_unit(shapes, request.granularity)
    return Problem(
        shapes=dict(shapes),
        units=units,
        options=request.settings,
        budget=budget,
        costs=Costs(shapes, units, request.rank, request.spend, budget, request.optimizer),
        alphas={unit: float(alpha) for unit, alpha in evidence.alphas.items()},
        qualities={row.module: row for row in evidence.qualities},
        sensitivities=evidence.sensitivities,
    )


def _check_evidence(registered: Registered, problem: Problem) -> None:
    """Check that what the strategy needs was measured for everything it decides on."""
    needs = registered.strategy.needs
    if needs == "quality":
        for unit in problem.units:
            if unit not in problem.alphas:
                raise ValueError(f"{unit!r} has modules to adapt but no alpha")
        for unit in problem.alphas:
            if unit not in problem.units:
                raise ValueError(f"{unit!r} has an alpha but no module to adapt")
    if needs == "sensitivity" and not problem.sensitivities:
        raise ValueError(f"strategy {registered.strategy.name!r} needs sensitivities")
    for task, values in problem.sensitivities.items():
        missing = next((name for name in problem.shapes if name not in values), None)
        if missing is not None:
            raise ValueError(f"{missing} has no sensitivity in the task {task!r}")


def _as_spent(problem: Problem, decision: Decision, optimizer: str | None) -> BudgetRecord:
    """Return the budget as a plan records it: what was asked for, and what was spent."""
    budget, costs = problem.budget, problem.costs
    limit, spent = costs.limit, costs.total(decision.numbers)
    return {
        "kind": budget.recorded_kind,
        "asked": costs.asked,
        "spent": None if limit is None else costs.amount(spent),
        "unspent": None if limit is None else costs.amount(limit - spent),
        "min_experts": budget.min_experts,
        "max_experts": budget.max_experts,
        "optimizer": optimizer if budget.kind == "memory_mib" else None,
    }


def _module(name: str, number: int, request: AllocationRequest, problem: Problem) -> ModulePlan:
    shape, experts, rank = problem.shapes[name], number, request.rank
    if request.spend == "rank" and number:
        experts, rank = 1, request.rank * number
    quality = problem.qualities.get(name)
    return ModulePlan(
        name=name,
        shape=shape,
        experts=experts,
        rank=rank,
        sensitivity={task: values[name] for task, values in problem.sensitivities.items()} or None,
        quality=quality and replace(quality, shape=shape),
    )
