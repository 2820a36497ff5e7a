"""The scores that a plan went by, block by block."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from ..allocation import Plan
from ..blocks import block_name
from .findings import Findings
from .words import numeral

__all__ = ["BlockScores", "module_shares"]

_SHARES = "sensitivity"
_ALPHAS = "alphalora"


@dataclass(frozen=True)
class BlockScores:
    """What spoke for giving each block experts.

    Attributes:
        name: What the scores are: ``alpha``, ``share`` of the sensitivity, or ``score``.
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
        matrices, the sum of its shares, or the mean of any other score.

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
        return cls("score", {block: fmean(scores) for block, scores in units.items()}, {})

    def text(self, block: str) -> str:
        """Return a block's score as it is printed; a dash where there is none."""
        value = self.values.get(block)
        if value is None:
            return "-"
        if self.name == "share":
            return f"{value:.2%}"
        whole = self.name == "score" and all(other == int(other) for other in self.values.values())
        return numeral(value) if whole else f"{value:.3f}"


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
