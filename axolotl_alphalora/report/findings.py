"""What was measured of a model and what a plan went by, reduced to what is said and shown.

It knows no sentences, no tables and no command.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..allocation import Plan
from ..blocks import block_name, group_by_block
from ..settings import QualitySettings
from .words import numeral, spread

if TYPE_CHECKING:
    from ..settings import MatrixQuality
    from ..spectral import Measurement

POOR_DISTANCE = 0.2
"""A fit is called poor above this distance: the law misplaces a fifth of the tail."""

SHORT_TAIL = 10
"""A fit is called poor with fewer eigenvalues in its tail: its error is then a third of alpha - 1
and more."""

_SHARES = "sensitivity"
_EXPLAINED = "eva"
_ALPHAS = "alphalora"


def is_poor(matrix: MatrixQuality) -> bool:
    """Whether a fit is clearly bad: far off its tail, or of hardly any eigenvalues."""
    if matrix.distance is None or matrix.tail_size is None:
        return False
    return matrix.distance > POOR_DISTANCE or matrix.tail_size < SHORT_TAIL


@dataclass(frozen=True)
class Findings:
    """The quality of matrices and units, from a measurement or from a plan that records one.

    Attributes:
        settings: How it was measured.
        matrices: One row for each matrix.
        scores: Unit name to mean alpha; a unit is a block, or finer.
        intervals: Unit name to the interval of its alpha, empty without resampling.
        description: What the source of the weights says about itself.
        granularity: How finely units divide the model.
    """

    settings: QualitySettings
    matrices: tuple[MatrixQuality, ...]
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    description: dict[str, Any] = field(default_factory=dict)
    granularity: str = "block"

    @classmethod
    def of_measurement(
        cls, found: Measurement, intervals: Mapping[str, tuple[float, float]] | None = None
    ) -> Findings:
        """Take over a measurement."""
        return cls(
            found.settings,
            found.matrices,
            found.scores,
            dict(intervals or {}),
            found.description,
            found.granularity,
        )

    @classmethod
    def of_plan(cls, plan: Plan) -> Findings | None:
        """Read what a plan records; None where no alphas were measured."""
        matrices = tuple(row.quality for row in plan.modules if row.quality is not None)
        if all(row.alpha is None for row in matrices):
            return None
        from ..spectral import unit_scores

        options = plan.strategy["options"]
        settings = QualitySettings.from_options(options)
        granularity = options.get("granularity", "block")
        return cls(
            settings,
            matrices,
            unit_scores(matrices, settings.aggregate, settings.normalize, granularity),
            {unit.name: unit.interval for unit in plan.units if unit.interval is not None},
            plan.weights,
            granularity,
        )

    def block_scores(self) -> dict[str, float]:
        """Return the mean alpha of every block, however finely experts were counted."""
        from ..spectral import unit_scores

        return unit_scores(self.matrices, self.settings.aggregate, self.settings.normalize)

    @property
    def trust(self) -> float | None:
        """Share of the variance between units that is not noise; None if that is not known.

        Without resampling it is known for `hill` alone: asymptotic errors take the start of a
        tail as given, which only there it is. A single unit has no ranking.
        """
        judged = self.intervals or self.settings.estimator == "hill"
        return self.most_trust if judged else None

    @property
    def most_trust(self) -> float | None:
        """An upper bound of `trust`; None for a single unit."""
        from ..spectral import unit_reliability

        share = unit_reliability(
            self.settings, self.matrices, self.scores, self.intervals or None, self.granularity
        )
        return None if math.isnan(share) else share


@dataclass(frozen=True)
class BlockScores:
    """What spoke for giving each block experts.

    Attributes:
        name: What the scores are: `alpha`, `share` of the sensitivity, `explained` variance,
            or `score`.
        values: Block name to score; empty if the strategy went by none.
        intervals: Block name to the interval of its alpha, where experts were counted by block.
    """

    name: str
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]

    @classmethod
    def of(cls, plan: Plan, findings: Findings | None = None) -> BlockScores:
        """Read the scores of a plan.

        Where experts are counted more finely than by block, a block has the mean alpha of its
        matrices, the sum of its shares, the mean of what is explained of its layers' inputs, or
        the mean of any other score.

        Args:
            plan: The plan.
            findings: What it records of matrices, if anything was measured.
        """
        units: dict[str, list[float]] = {}
        for unit in plan.units:
            if unit.score is not None:
                units.setdefault(block_name(unit.name.partition(" ")[0]), []).append(unit.score)
        strategy = plan.strategy["name"]
        if findings is not None and (strategy == _ALPHAS or not units):
            by_block = findings.granularity == "block"
            return cls("alpha", findings.block_scores(), findings.intervals if by_block else {})
        if strategy == _SHARES:
            return cls("share", {block: sum(shares) for block, shares in units.items()}, {})
        if strategy == _EXPLAINED:
            return cls("explained", _explained_by_block(plan), {})
        return cls("score", {block: fmean(scores) for block, scores in units.items()}, {})

    def text(self, block: str) -> str:
        """Return a block's score as it is printed; a dash where there is none."""
        value = self.values.get(block)
        if value is None:
            return "-"
        if self.name in ("share", "explained"):
            return f"{value:.2%}"
        whole = self.name == "score" and all(other == int(other) for other in self.values.values())
        return numeral(value) if whole else f"{value:.3f}"


def _explained_by_block(plan: Plan) -> dict[str, float]:
    known = {module.name: math.fsum(module.explained or ()) for module in plan.modules}
    blocks = group_by_block(known).items()
    return {block: fmean(known[name] for name in names) for block, names in blocks}


def module_shares(plan: Plan) -> dict[str, float]:
    """Return each module's share of the sensitivity, averaged over the tasks.

    Args:
        plan: A plan.

    Returns:
        Module name to share; empty if no sensitivities were measured.
    """
    rows = [(module.name, module.sensitivity) for module in plan.modules if module.sensitivity]
    totals: dict[str, float] = {}
    for _, values in rows:
        for task, value in values.items():
            totals[task] = totals.get(task, 0.0) + value
    return {
        name: fmean(value / (totals[task] or 1) for task, value in values.items())
        for name, values in rows
    }


def module_explained(plan: Plan) -> dict[str, float]:
    """Return how much of the variance of each module's inputs its experts' components explain.

    Args:
        plan: A plan.

    Returns:
        Module name to a number in [0, 1], 0 for a module without experts; empty if no explained
        variances were measured.
    """
    numbers = plan.numbers
    return {
        module.name: math.fsum(module.explained[: numbers[module.name]])
        for module in plan.modules
        if module.explained is not None
    }


def differs_within_blocks(plan: Plan) -> bool:
    """Whether the modules of a block have different numbers of experts."""
    numbers = plan.numbers
    return any(
        len({numbers[name] for name in names}) > 1 for names in group_by_block(numbers).values()
    )


def block_experts(plan: Plan) -> dict[str, str]:
    """Return each block's number; the mean and the range of its modules where blocks differ."""
    means, numbers = plan.block_numbers, plan.numbers
    if not differs_within_blocks(plan):
        return {block: numeral(mean) for block, mean in means.items()}
    return {
        block: f"{means[block]:.1f} ({spread(numbers[name] for name in names)})"
        for block, names in group_by_block(numbers).items()
    }


def block_parameters(plan: Plan) -> dict[str, int]:
    """Return each block's trainable parameters."""
    totals = dict.fromkeys(plan.block_numbers, 0)
    for module in plan.modules:
        totals[block_name(module.name)] += plan.parameters_of(module)
    return totals
