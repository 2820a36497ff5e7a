"""AlphaLoRA: experts in proportion to a power of the mean alpha."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from ...settings import QualitySettings
from ..budget import Budget
from ..strategy import Options, Problem, Strategy, hookimpl

_QUALITY = QualitySettings()


class AlphaLoraOptions(Options):
    """How alphas are measured, and how experts follow from them."""

    estimator: str = Field(
        _QUALITY.estimator, description="which eigenvalue starts the power law's tail"
    )
    window: str | None = Field(
        _QUALITY.window, description="windows whose eigenvalues are pooled: auto, 128, 128x64"
    )
    aggregate: str = Field(
        _QUALITY.aggregate, description="how matrices make a score: mean, median, parameters"
    )
    normalize: bool = Field(
        _QUALITY.normalize, description="compare alphas within their kind of projection first"
    )
    beta: float = Field(
        2.5, ge=0, allow_inf_nan=False, description="experts in proportion to alpha ** beta"
    )
    granularity: Literal["block", "group", "module"] = Field(
        "block", description="what shares a number: a block, its attention or MLP, a module"
    )
    rounding: Literal["largest_remainder", "published"] = Field(
        "largest_remainder", description="published: the released code's, for comparison only"
    )

    @model_validator(mode="before")
    @classmethod
    def _check_quality(cls, data: Any) -> Any:
        return {**data, "window": QualitySettings.from_options(data).window}

    @model_validator(mode="after")
    def _check_rounding(self) -> AlphaLoraOptions:
        if self.rounding == "published" and self.granularity != "block":
            raise ValueError(
                f"rounding: published is defined for blocks, not granularity: {self.granularity}"
            )
        return self

    def check_budget(self, budget: Budget) -> None:
        """The released code shares out experts, and nothing else."""
        experts = budget.kind in ("experts_per_block", "total_experts")
        if self.rounding == "published" and not experts:
            raise ValueError(
                f"rounding: published is defined for a budget in experts, not {budget.kind}: give "
                "experts_per_block or total_experts, or leave rounding out"
            )


@hookimpl
def register_strategy() -> Strategy:
    """Describe the strategy."""
    return Strategy(
        name="alphalora",
        summary="more experts where the weights' spectra are less heavy-tailed (larger alpha)",
        options=AlphaLoraOptions,
        needs="quality",
        reference="AlphaLoRA, arXiv 2410.10054",
        shorthand="estimator",
    )


@hookimpl
def score(problem: Problem) -> dict[str, float]:
    """Return the mean alpha of every unit."""
    return dict(problem.alphas)


@hookimpl
def allocate(problem: Problem, scores: Mapping[str, float]) -> dict[str, int]:
    r"""Share experts by the units' alphas.

    Unit :math:`l` gets :math:`n_l = T \cdot s_l / \sum_k s_k` experts with
    :math:`s_l = \bar\alpha_l^\beta` (section 3 of the paper), rounded by largest remainder within
    the bounds. Where two units tie, the earlier one gets more.
    """
    options: AlphaLoraOptions = problem.options
    for unit, alpha in scores.items():
        if not (math.isfinite(alpha) and alpha > 0):
            raise ValueError(f"the alpha of {unit!r} is {alpha}: it must be a positive number")
    if options.rounding == "published":
        return _published(problem, scores)
    # Relative to the largest: the power cannot overflow.
    largest = max(scores.values())
    weights = {unit: (alpha / largest) ** options.beta for unit, alpha in scores.items()}
    return problem.spend(weights, ties=scores)


def _published(problem: Problem, scores: Mapping[str, float]) -> dict[str, int]:
    total = round(problem.costs.asked or 0)
    counts = published_rounding(list(scores.values()), problem.options.beta, total)
    for unit, count in zip(scores, counts, strict=True):
        if count < 0:
            raise ValueError(
                f"rounding: published gives {unit} {count} experts for a total of {total}: it puts "
                "what rounding leaves over on one block. Use rounding: largest_remainder, or a "
                "larger budget"
            )
    return dict(zip(scores, counts, strict=True))


def published_rounding(alphas: list[float], beta: float, total: int) -> list[int]:
    """Round as AlphaLoRA's released code does.

    Shares are rounded to the nearest whole number (halves to even). While the sum is too small the
    block with the smallest `s - n` gets one more, while it is too large the block with the
    largest `s - n` loses one. Since s is not normalised there, it is always the same block.

    Args:
        alphas: Score of each block.
        beta: Its exponent.
        total: Number of experts.

    Returns:
        Experts of each block; some may be negative.
    """
    weights = [alpha**beta for alpha in alphas]
    scale = total / sum(weights)
    counts = [round(weight * scale) for weight in weights]
    while sum(counts) != total:
        gaps = [weight - count for weight, count in zip(weights, counts, strict=True)]
        if sum(counts) < total:
            counts[gaps.index(min(gaps))] += 1
        else:
            counts[gaps.index(max(gaps))] -= 1
    return counts
