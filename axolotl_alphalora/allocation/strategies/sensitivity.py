"""LoRA-SMoE: experts by the sensitivity of the loss on the task's own data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal

from pydantic import Field, model_validator

from ...blocks import kind_in_stack, part_of, stack_of
from ..strategy import BudgetUse, Problem, SampledOptions, Strategy, hookimpl


class SensitivityOptions(SampledOptions):
    """How sensitivities are measured, and how experts follow from them."""

    beta: float = Field(
        0.5, ge=0, allow_inf_nan=False, description="experts in proportion to sensitivity ** beta"
    )
    granularity: Literal["block", "group", "module"] = Field(
        "module", description="what shares a number: a block, its attention or MLP, a module"
    )
    percentile: float | None = Field(
        None,
        ge=0,
        lt=100,
        description="the paper's rule instead of a budget: an expert for each task above it",
    )
    within: Literal["all", "group", "kind"] = Field(
        "all", description="what a percentile is taken over: all modules, attention or MLP, a kind"
    )

    @model_validator(mode="after")
    def _check_rule(self) -> SensitivityOptions:
        if self.percentile is None and self.within != "all":
            raise ValueError("within says what a percentile is taken over: set percentile too")
        if self.percentile is not None and self.granularity != "module":
            raise ValueError("a percentile decides for single modules: leave out granularity")
        return self

    @property
    def budget_use(self) -> BudgetUse:
        """The percentile decides how many experts there are."""
        return "needed" if self.percentile is None else "none"


@hookimpl
def register_strategy() -> Strategy:
    """Describe the strategy."""
    return Strategy(
        name="sensitivity",
        summary="more experts where the loss on a sample of the training data is more sensitive",
        options=SensitivityOptions,
        needs="sensitivity",
        reference="LoRA-SMoE, arXiv 2505.06272",
    )


@hookimpl
def score(problem: Problem) -> dict[str, float]:
    """Return each unit's share of the summed squared gradients, averaged over the tasks.

    Every task counts the same, however large its gradients are.

    Raises:
        ValueError: If all gradients of a task are zero; names it.
    """
    shares: list[dict[str, float]] = []
    for task, values in problem.sensitivities.items():
        total = math.fsum(values.values())
        if not total > 0:
            raise ValueError(
                f"all gradients of the task {task!r} are zero: its samples teach these modules "
                "nothing (are all their labels masked?)"
            )
        shares.append(
            {
                unit: math.fsum(values[name] for name in modules) / total
                for unit, modules in problem.units.items()
            }
        )
    return {unit: fmean(share[unit] for share in shares) for unit in problem.units}


@hookimpl
def allocate(problem: Problem, scores: Mapping[str, float]) -> dict[str, int]:
    """Spend the budget by the scores, or count the tasks above the percentile.

    The paper's rule: with tau_d a percentile of the sensitivities s^d of task d, module b gets
    `N_b = sum over d of [s_b^d > tau_d]` experts, and none where no task is sensitive to it.
    """
    options: SensitivityOptions = problem.options
    if options.percentile is None:
        largest = max(scores.values())
        weights = {unit: (value / largest) ** options.beta for unit, value in scores.items()}
        return problem.spend(weights, ties=scores)
    counts = dict.fromkeys(problem.shapes, 0)
    for values in problem.sensitivities.values():
        for members in _groups(problem, options.within):
            found = [values[name] for name in members]
            for name, above in zip(
                members, above_percentile(found, options.percentile), strict=True
            ):
                counts[name] += above
    return counts


def above_percentile(values: Sequence[float], percentile: float) -> list[bool]:
    """Tell which values are larger than a percentile of all of them.

    The percentile is interpolated between the two closest ranks, as `numpy.percentile` does.

    Args:
        values: At least one number.
        percentile: From 0 to 100.
    """
    ordered = sorted(values)
    place = percentile / 100 * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    threshold = ordered[low] + (ordered[high] - ordered[low]) * (place - low)
    return [value > threshold for value in values]


def _groups(problem: Problem, within: str) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in problem.shapes:
        key = {
            "all": "",
            "group": f"{stack_of(name)} {part_of(name)}",
            "kind": kind_in_stack(name),
        }[within]
        groups.setdefault(key, []).append(name)
    return list(groups.values())
