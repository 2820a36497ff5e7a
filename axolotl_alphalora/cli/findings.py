"""What was found out about a model's blocks and matrices, whichever command asked."""

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
    """The quality of matrices and blocks, from a measurement or from a plan that records one.

    Attributes:
        settings: How it was measured.
        matrices: One row for each matrix.
        scores: Block name to score.
        intervals: Block name to the interval of its score, empty without resampling.
        description: What the source of the weights says about itself.
    """

    settings: QualitySettings
    matrices: tuple[MatrixQuality, ...]
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    description: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_measurement(
        cls, found: Measurement, intervals: Mapping[str, tuple[float, float]] | None = None
    ) -> Findings:
        """Take over a measurement."""
        return cls(
            found.settings, found.matrices, found.scores, dict(intervals or {}), found.description
        )

    @classmethod
    def of_plan(cls, plan: Plan) -> Findings | None:
        """Read what a plan records; None for a strategy that goes by no measured scores."""
        from ..spectral import MatrixQuality

        scores = {block.name: block.score for block in plan.blocks if block.score is not None}
        matrices = tuple(
            MatrixQuality(
                module=row.name,
                shape=row.shape,
                alpha=row.alpha,
                x_min=row.x_min,
                distance=row.distance,
                tail_size=row.tail_size,
                num_eigenvalues=row.num_eigenvalues,
                numerical_rank=row.numerical_rank or 0,
                note=row.note,
            )
            for row in plan.modules
            if row.num_eigenvalues is not None
        )
        if len(scores) < len(plan.blocks) or not any(row.alpha for row in matrices):
            return None
        return cls(
            QualitySettings.from_options(plan.strategy),
            matrices,
            scores,
            {block.name: block.interval for block in plan.blocks if block.interval is not None},
            plan.weights,
        )

    @property
    def trust(self) -> float | None:
        """Share of the variance between blocks that is not noise; None if that is not known.

        Without resampling it is known for ``hill`` alone: asymptotic errors take the start of a
        tail as given, which only there it is. A single block has no ranking.
        """
        judged = self.intervals or self.settings.estimator == "hill"
        return self.most_trust if judged else None

    @property
    def most_trust(self) -> float | None:
        """An upper bound of :attr:`trust`; None for a single block."""
        from ..spectral import trust

        share = trust(self.settings, self.matrices, self.scores, self.intervals or None)
        return None if math.isnan(share) else share
