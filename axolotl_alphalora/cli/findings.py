"""What was found out about a model's matrices and units, whichever command asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..allocation import Plan
from ..settings import QualitySettings

if TYPE_CHECKING:
    from ..spectral import MatrixQuality, Measurement

__all__ = ["Findings"]


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

        Without resampling it is known for ``hill`` alone: asymptotic errors take the start of a
        tail as given, which only there it is. A single unit has no ranking.
        """
        judged = self.intervals or self.settings.estimator == "hill"
        return self.most_trust if judged else None

    @property
    def most_trust(self) -> float | None:
        """An upper bound of :attr:`trust`; None for a single unit."""
        from ..spectral import trust

        share = trust(
            self.settings, self.matrices, self.scores, self.intervals or None, self.granularity
        )
        return None if math.isnan(share) else share
