"""What an allocation strategy is, its hooks, and what it is given to decide with.

A strategy is a module, or any object, with the hook `register_strategy` and at least one of
`score` and `allocate`, marked with `hookimpl`. A package offers it in its entry
points::

    [project.entry-points."axolotl_alphalora.strategies"]
    my-strategy = "my_package.my_module"

Hooks may leave out parameters that they do not need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Self

import pluggy
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from ..settings import MatrixQuality
from .budget import Budget, Costs
from .spending import spend

Needs = Literal["nothing", "quality", "sensitivity", "activations"]
SAMPLED: Mapping[Needs, str] = {"sensitivity": "gradients", "activations": "activations"}
"""What a loaded model is run on training data for, and what is taken from it there."""
BudgetUse = Literal["needed", "optional", "none"]
Order = Literal["scores", "opposite", "shuffled"]
CONTROLS = ("opposite", "shuffled")
"""The values of the option `order` that make a plan a control."""


DEFAULT_SAMPLES = 64
"""Training samples that are measured on, where a strategy does not say."""

DEFAULT_RHO = 2.0
"""EVA's, for a strategy that goes by activations and has no option of that name."""


class Options(BaseModel):
    """The options of a strategy: subclass it with a field, a default and a description for each.

    Unknown options and values of another type are refused. A subclass with a field
    `granularity` (`"block"`, `"group"` or `"module"`) decides by it in which units experts
    are counted; without one, a unit is a decoder block. Those of a strategy that needs quality may
    hold the fields of `QualitySettings`, which then say how
    quality is measured.

    Every strategy with scores has the options `order` and `order_seed`: what its numbers are
    dealt by.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    order: Order = Field(
        default="scores",
        description="controls: opposite deals the same numbers the other way round, shuffled at "
        "random, among units of equal shapes",
    )
    order_seed: int = Field(default=0, ge=0, description="seed of order: shuffled")

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if "order_seed" in self.model_fields_set and self.order != "shuffled":
            raise ValueError("order_seed is the seed of order: shuffled: set that, or leave it out")
        return self

    @classmethod
    def own_fields(cls) -> dict[str, FieldInfo]:
        """The fields that the strategy's package has added."""
        fields = cls.model_fields.items()
        return {name: field for name, field in fields if name not in Options.model_fields}

    @property
    def recorded(self) -> dict[str, Any]:
        """The options as a plan records them: `order` only where it makes a control."""
        left_out = {"scores": {"order", "order_seed"}, "opposite": {"order_seed"}}
        return self.model_dump(mode="json", exclude=left_out.get(self.order))

    @property
    def budget_use(self) -> BudgetUse:
        """Whether it needs a budget, may do without, or takes none since it has its own numbers."""
        return "needed"

    def check_budget(self, budget: Budget) -> None:
        """Check that the strategy can spend a budget, before anything is measured.

        Raises:
            ValueError: If it cannot; says why.
        """


class SampledOptions(Options):
    """The options of a strategy that goes by samples of the training data."""

    samples: int = Field(
        default=DEFAULT_SAMPLES, ge=1, description="training samples, shared out over the tasks"
    )
    seed: int = Field(default=0, ge=0, description="seed of the drawing of samples")


@dataclass(frozen=True)
class Strategy:
    """What a plug-in says about its strategy.

    Attributes:
        name: What users call it by: letters, digits, `_` and `-`.
        summary: One sentence that says what it goes by.
        options: Its options.
        needs: What must be measured before it can decide: `"quality"` (spectra of the weights),
            `"sensitivity"` (gradients on a sample of the training data), `"activations"` (the
            variance of the layers' inputs on such a sample), or `"nothing"`.
        reference: The paper it is from.
        shorthand: The option that `name:value` sets, None if there is no such short form.
    """

    name: str
    summary: str
    options: type[Options] = Options
    needs: Needs = "nothing"
    reference: str | None = None
    shorthand: str | None = None


@dataclass(frozen=True)
class Evidence:
    """What was measured of a model, as far as a strategy needs it.

    Attributes:
        weights: What the source of the weights says about itself: plain JSON values.
        alphas: Unit name to the mean alpha of its matrices.
        qualities: What was measured of each matrix.
        intervals: Unit name to the interval of its alpha.
        sensitivities: Task to module name to the sum of squared gradients over its samples.
        explained_variances: Module name to the share of its inputs' variance that the components
            of its first, second, ... expert explain: as many numbers for every module.
        sample: What those were measured on: `tasks`, `seed` and `digest`.
    """

    weights: Mapping[str, Any] = field(default_factory=lambda: {"source": "none"})
    alphas: Mapping[str, float] = field(default_factory=dict)
    qualities: tuple[MatrixQuality, ...] = ()
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    sensitivities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    explained_variances: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    sample: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Problem:
    """What a strategy decides: how many experts each unit gets.

    Attributes:
        shapes: Module name to (output features, input features), in the model's order.
        units: Unit name to the names of its modules, which share a number; see
            `group_by_unit`.
        options: The strategy's options.
        budget: What may be spent.
        costs: What experts cost in it.
        alphas: Unit name to the mean alpha of its matrices, if the strategy needs quality.
        qualities: Module name to what was measured of its matrix, likewise.
        sensitivities: Task to module name to the sum of squared gradients over the task's samples,
            if the strategy needs sensitivity.
        explained_variances: Module name to the share of its inputs' variance that the components
            of its first, second, ... expert explain, if the strategy needs activations.
    """

    shapes: Mapping[str, tuple[int, int]]
    units: Mapping[str, Sequence[str]]
    options: Any
    budget: Budget
    costs: Costs
    alphas: Mapping[str, float] = field(default_factory=dict)
    qualities: Mapping[str, MatrixQuality] = field(default_factory=dict)
    sensitivities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    explained_variances: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def spend(
        self, weights: Mapping[str, float], ties: Mapping[str, float] | None = None
    ) -> dict[str, int]:
        """Spend the budget in proportion to weights, within the bounds.

        A unit with a larger weight never gets fewer experts; what is spent is the budget, or the
        closest below it that can be had.

        Args:
            weights: Unit name to weight, one for every unit.
            ties: Unit name to what the weights are a growing function of: where rounding has made
                two of them equal, this still tells them apart. What ties nevertheless goes to the
                earlier unit.

        Raises:
            ValueError: If there is no budget, it is too small, or the weights cannot be used.
        """
        if self.costs.limit is None:
            raise ValueError("there is no budget to spend")
        self.costs.check_minimum(self.budget.min_experts)
        exact = _told_apart(weights, ties) if ties else weights
        counts = spend(
            [float(exact[unit]) for unit in self.units],
            [partial(self.costs.of, unit) for unit in self.units],
            self.costs.limit,
            self.budget.min_experts,
            self.budget.max_experts,
        )
        return dict(zip(self.units, counts, strict=True))


def _told_apart(weights: Mapping[str, float], ties: Mapping[str, float]) -> dict[str, float]:
    """Make weights differ wherever what decides ties does, by the smallest step of a float."""
    found: dict[str, float] = {}
    last, tie = -math.inf, -math.inf
    for unit in sorted(weights, key=lambda unit: (ties[unit], weights[unit])):
        weight = weights[unit]
        if ties[unit] > tie and weight <= last:
            weight = math.nextafter(last, math.inf)
        elif ties[unit] == tie:
            weight = last
        found[unit] = last = weight
        tie = ties[unit]
    return found


GROUP = "axolotl_alphalora.strategies"
"""The entry-point group of strategies."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec(firstresult=True)
def register_strategy() -> Strategy:
    """Say what the strategy is called, what it goes by and which options it takes."""
    raise NotImplementedError


@hookspec(firstresult=True)
def score(problem: Problem) -> Mapping[str, float] | None:
    """Say what speaks for giving each unit experts.

    The plan records the scores. Without `allocate`, the budget is spent in proportion to
    them, so that they must be finite and not negative.

    Args:
        problem: What is to be decided.

    Returns:
        Unit name to score, one for every unit of `problem.units`; None for no scores.

    Raises:
        ValueError: If there can be none; says why.
    """


@hookspec(firstresult=True)
def allocate(problem: Problem, scores: Mapping[str, float]) -> Mapping[str, int]:
    """Say how many experts each unit, or each module, gets.

    Args:
        problem: What is to be decided.
        scores: What `score` returned, empty if nothing.

    Returns:
        Number of experts for every unit of `problem.units`, or for every module of
        `problem.shapes`; 0 leaves the modules alone. The numbers must keep to the bounds and
        must not cost more than the budget: see `Problem.spend`.

    Raises:
        ValueError: If the budget cannot be met; says why.
    """
    raise NotImplementedError
