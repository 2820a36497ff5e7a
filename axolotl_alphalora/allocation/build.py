"""Building a plan: a strategy is asked, and what it says is checked and written down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, replace
from numbers import Integral, Real
from typing import Any

from ..blocks import group_by_unit
from .budget import Budget, Costs
from .order import deal
from .plan import Plan, mean_number
from .records import BudgetRecord, ModulePlan, UnitPlan
from .registry import Registered, StrategyError
from .request import AllocationRequest
from .strategy import DEFAULT_RHO, Evidence, Options, Problem, Strategy

DEFAULT_EXPERTS_PER_BLOCK = 5.0
"""The budget where a strategy needs one and none is given: AlphaLoRA's."""


def resolve_budget(name: str, options: Options, given: Budget | None) -> Budget:
    """Make the budget that a strategy gets.

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

    Raises:
        ValueError: If it cannot; says what would do.
    """
    problem = _problem(request, shapes, Evidence())
    if problem.costs.limit is not None:
        evenly = problem.spend(dict.fromkeys(problem.units, 1.0))
        numbers = {name: evenly[unit] for unit, names in problem.units.items() for name in names}
        check_numbers(numbers, problem)


def components_needed(request: AllocationRequest, shapes: Mapping[str, tuple[int, int]]) -> int:
    """Say how many components of each layer's inputs a strategy reads, in whole experts.

    They are those of rho times as many experts as an even plan gives a module on average, up to
    `max_experts`. rho is the strategy's option of that name, or else EVA's 2.

    Raises:
        ValueError: If the budget cannot be spent on the model.
    """
    problem = _problem(request, shapes, Evidence())
    mean = DEFAULT_EXPERTS_PER_BLOCK
    if problem.costs.limit is not None:
        evenly = problem.spend(dict.fromkeys(problem.units, 1.0))
        mean = sum(evenly[unit] * len(names) for unit, names in problem.units.items()) / len(shapes)
    experts = max(1, math.ceil(getattr(request.settings, "rho", DEFAULT_RHO) * mean))
    return min(experts, problem.budget.max_experts or experts) * request.rank


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
    _check_evidence(registered.strategy, problem)
    numbers, scores = _decide(registered, problem)
    if not any(numbers.values()):
        raise StrategyError(
            f"strategy {request.strategy!r} gives no module an expert: there is nothing to train"
        )
    return Plan(
        base_model=request.base_model,
        weights=dict(known.weights),
        strategy={
            "name": request.strategy,
            "package": registered.package,
            "options": problem.options.recorded,
        },
        sample=known.sample and deepcopy(dict(known.sample)),  # type: ignore[arg-type]
        budget=_as_spent(problem, numbers, request.optimizer),
        spend=request.spend,
        **asdict(request.mixture),
        rank=request.rank,
        units=tuple(
            UnitPlan(
                name=unit,
                score=scores.get(unit),
                experts=mean_number(numbers, names),
                interval=known.intervals.get(unit),
            )
            for unit, names in problem.units.items()
        ),
        modules=tuple(_module(name, numbers[name], request, problem) for name in shapes),
    )


def _problem(
    request: AllocationRequest, shapes: Mapping[str, tuple[int, int]], evidence: Evidence
) -> Problem:
    if not shapes:
        raise ValueError("there are no modules to plan for")
    mixture = request.mixture
    mixture.check_rank(request.rank, "the rank of an expert (lora_r)")
    budget = resolve_budget(request.strategy, request.settings, request.budget)
    units = group_by_unit(shapes, request.granularity)
    return Problem(
        shapes=dict(shapes),
        units=units,
        options=request.settings,
        budget=budget,
        costs=Costs(shapes, units, request.rank, request.spend, budget, request.optimizer, mixture),
        alphas={unit: float(alpha) for unit, alpha in evidence.alphas.items()},
        qualities={row.module: row for row in evidence.qualities},
        sensitivities=evidence.sensitivities,
        explained_variances=evidence.explained_variances,
    )


def _check_evidence(strategy: Strategy, problem: Problem) -> None:
    """Check that what a strategy needs was measured for everything it decides on.

    Raises:
        ValueError: If it was not; names the first unit or module.
    """
    needs = strategy.needs
    if needs == "quality":
        for unit in problem.units:
            if unit not in problem.alphas:
                raise ValueError(f"{unit!r} has modules to adapt but no alpha")
        for unit in problem.alphas:
            if unit not in problem.units:
                raise ValueError(f"{unit!r} has an alpha but no module to adapt")
    if needs == "sensitivity" and not problem.sensitivities:
        raise ValueError(f"strategy {strategy.name!r} needs sensitivities")
    tables: dict[str, Mapping[str, Any]] = {
        f"sensitivity in the task {task!r}": values
        for task, values in problem.sensitivities.items()
    }
    if needs == "activations":
        tables["explained variance"] = problem.explained_variances
    for what, values in tables.items():
        missing = next((name for name in problem.shapes if name not in values), None)
        if missing is not None:
            raise ValueError(f"{missing} has no {what}")


def _as_spent(problem: Problem, numbers: Mapping[str, int], optimizer: str | None) -> BudgetRecord:
    """Return the budget as a plan records it: what was asked for, and what was spent."""
    budget, costs = problem.budget, problem.costs
    limit, spent = costs.limit, costs.total(numbers)
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
        explained=problem.explained_variances.get(name),
        quality=quality and replace(quality, shape=shape),
    )


def _decide(registered: Registered, problem: Problem) -> tuple[dict[str, int], dict[str, float]]:
    """Return each module's number and each unit's score, if they fit the model and the budget."""
    name = registered.strategy.name
    try:
        scores = _read_scores(registered.score(problem), problem, negative=registered.allocates)
        numbers = _by_module(registered.allocate(problem, scores), problem)
        check_numbers(numbers, problem)
        numbers = deal(numbers, scores, problem)
    except Exception as error:
        package = "" if registered.built_in else f" of {registered.package}"
        said = str(error)
        if not isinstance(error, ValueError | TypeError):
            said = f"{type(error).__name__}: {error}"
        raise StrategyError(f"strategy {name!r}{package}: {said}") from error
    return numbers, scores


def _read_scores(scores: Mapping[str, Any], problem: Problem, negative: bool) -> dict[str, float]:
    """Check and read what a strategy returned; only shares of a budget cannot be negative."""
    if not scores:
        return {}
    _check_names(scores, problem.units, "score", "unit")
    for unit, value in scores.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"the score of {unit!r} is {value!r}, not a number")
        if not (math.isfinite(value) and (negative or float(value) >= 0)):
            least = "" if negative else ", 0 or larger"
            raise ValueError(f"the score of {unit!r} is {value}: it must be finite{least}")
    return {unit: float(value) for unit, value in scores.items()}


def _by_module(counts: Mapping[str, Any], problem: Problem) -> dict[str, int]:
    """Return a number for each module, whether units or modules were decided on."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, Integral):
            raise TypeError(f"{name!r} gets {count!r} experts, which is no whole number")
        if count < 0:
            raise ValueError(f"{name!r} gets {count} experts: 0 is the fewest")
    by_module = all(name in counts for name in problem.shapes)
    if not by_module and any(name in problem.units for name in counts):
        _check_names(counts, problem.units, "number of experts", "unit")
        counts = {name: counts[unit] for unit, names in problem.units.items() for name in names}
    _check_names(counts, problem.shapes, "number of experts", "target module")
    return {name: int(counts[name]) for name in problem.shapes}


def _check_names(
    given: Mapping[str, Any], wanted: Mapping[str, Any], what: str, where: str
) -> None:
    missing = next((name for name in wanted if name not in given), None)
    if missing is not None:
        raise ValueError(f"{missing!r} has no {what}")
    stray = next((name for name in given if name not in wanted), None)
    if stray is not None:
        raise ValueError(f"{stray!r} has a {what} and is no {where} of this model")


def check_numbers(numbers: Mapping[str, int], problem: Problem) -> None:
    """Check that numbers keep to the bounds and the budget.

    Raises:
        ValueError: If they do not; names the first module, or the budget.
    """
    budget, costs = problem.budget, problem.costs
    for name, number in numbers.items():
        if number < budget.min_experts:
            hint = "" if number else ": set min_experts to 0 if layers may be left alone"
            raise ValueError(
                f"{name} gets {number} experts, fewer than min_experts {budget.min_experts}{hint}"
            )
        if budget.max_experts is not None and number > budget.max_experts:
            raise ValueError(
                f"{name} gets {number} experts, more than max_experts {budget.max_experts}"
            )
    if costs.limit is None:
        return
    spent = costs.total(numbers)
    if spent > costs.limit:
        raise ValueError(
            f"its experts cost {costs.amount(spent):g}, more than the budget of "
            f"{budget.kind} {budget.amount:g} ({costs.amount(costs.limit):g})"
        )
    if _has_room(numbers, problem):
        raise ValueError(
            f"its experts cost {costs.amount(spent):g} of {costs.amount(costs.limit):g}, which "
            "leaves room for more: spend the whole budget, for example with problem.spend"
        )
    capped = all(number == budget.max_experts for number in numbers.values())
    if spent < costs.limit and capped and budget.kind in ("experts_per_block", "total_experts"):
        raise ValueError(
            f"the budget is {costs.amount(costs.limit):g} experts, but max_experts "
            f"{budget.max_experts} admits {costs.amount(spent):g} only"
        )


def _has_room(numbers: Mapping[str, int], problem: Problem) -> bool:
    """Whether any unit that may have one expert more could be paid it.

    Room for a cheap one alone may have to stay: it could turn the order of the scores round.
    """
    costs, most = problem.costs, problem.budget.max_experts
    assert costs.limit is not None
    highest = {unit: max(numbers[name] for name in names) for unit, names in problem.units.items()}
    # In memory `problem.spend` goes by bounds from above, as `Costs.of` says.
    bounded = problem.budget.kind == "memory_mib"
    spent = costs.total(numbers)
    if bounded:
        spent = sum(costs.of(unit, number) for unit, number in highest.items())
    prices = []
    for unit, names in problem.units.items():
        if most is not None and highest[unit] >= most:
            continue
        now = {name: numbers[name] for name in names}
        more = {name: number + 1 for name, number in now.items()}
        if bounded:
            prices.append(costs.of(unit, highest[unit] + 1) - costs.of(unit, highest[unit]))
        else:
            prices.append(costs.total(more) - costs.total(now))
    left = costs.limit - spent
    return left > 0 and left >= max(prices, default=math.inf)
