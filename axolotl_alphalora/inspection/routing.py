"""Numbers of routers over data, and how far tasks differ in the experts that they use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..adapter.usage import RouterUsage

ALL = "all"
"""Key of the usage over all of the data; the others are tasks."""

Usage = Mapping[str, Mapping[str, "RouterUsage"]]
"""Task, or `ALL`, to module name to what its router decided."""


def expert_shares(usage: RouterUsage) -> tuple[float, ...]:
    """Return each expert's share of a router's tokens; they sum to 1.

    Where every token goes to every expert their shares of the gates say more, and are returned.
    """
    return usage.token_share if usage.chooses else usage.gate_share


def specialisation(by_task: Sequence[RouterUsage]) -> float | None:
    """Return how much of a token's task one router's choice of expert gives away.

    It is the mutual information between task and expert, every task counting as much as any other
    (the Jensen-Shannon divergence of their shares), divided by the most that it can be,
    ``ln min(N, tasks)``: 0 where all tasks use the experts alike, 1 where an expert tells the task.

    Args:
        by_task: What the router decided for each task.

    Returns:
        Between 0 and 1; None with fewer than two tasks.
    """
    if len(by_task) < 2:
        return None
    shares = [expert_shares(usage) for usage in by_task]
    most = math.log(min(len(shares), len(shares[0])))
    information = _entropy(_mean(shares)) - fmean(map(_entropy, shares))
    return min(max(information / most, 0.0), 1.0)


def distance(task: RouterUsage, by_task: Sequence[RouterUsage]) -> float:
    """Return which part of a task's tokens other experts get than on average over the tasks.

    It is the total variation distance between the task's shares and the mean of all tasks'.

    Args:
        task: What one router decided for the task.
        by_task: What it decided for each task, this one included.

    Returns:
        Between 0 and 1.
    """
    mean = _mean([expert_shares(usage) for usage in by_task])
    shares = expert_shares(task)
    return math.fsum(abs(x - y) for x, y in zip(shares, mean, strict=True)) / 2


@dataclass(frozen=True)
class RoutingSummary:
    """Some routers in a few numbers, each the mean over routers unless it says otherwise.

    Load and dead experts are those of routers that choose: with k of k experts there is nothing to
    be uneven, and they are None if no router chooses.

    Attributes:
        routers: Number of routers.
        entropy: Entropy of a token's distribution over the experts, divided by ln N.
        top_gate: Largest gate of a token.
        load_cv: Coefficient of variation of the experts' token shares.
        load_max: Largest token share in units of the mean share.
        dead: Number of experts with less than a tenth of the fair share.
        specialisation: See :func:`specialisation`; None with fewer than two tasks.
    """

    routers: int
    entropy: float
    top_gate: float
    load_cv: float | None
    load_max: float | None
    dead: int | None
    specialisation: float | None

    @classmethod
    def of(
        cls, usages: Sequence[RouterUsage], by_task: Sequence[Sequence[RouterUsage]] = ()
    ) -> RoutingSummary | None:
        """Summarise routers; None if there are none.

        Args:
            usages: What each router decided.
            by_task: For each of them what it decided for each task.
        """
        if not usages:
            return None
        choosing = [usage for usage in usages if usage.chooses]
        found = [value for tasks in by_task if (value := specialisation(tasks)) is not None]
        return cls(
            routers=len(usages),
            entropy=fmean(usage.entropy for usage in usages),
            top_gate=fmean(usage.top_gate for usage in usages),
            load_cv=fmean(usage.load_cv for usage in choosing) if choosing else None,
            load_max=fmean(usage.load_max for usage in choosing) if choosing else None,
            dead=sum(len(usage.dead) for usage in choosing) if choosing else None,
            specialisation=fmean(found) if found else None,
        )


def _mean(shares: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(column) for column in zip(*shares, strict=True)]


def _entropy(shares: Sequence[float]) -> float:
    return -math.fsum(share * math.log(share) for share in shares if share > 0)
