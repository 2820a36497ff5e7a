"""How far tasks differ in the experts that they use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from .weights import entropy

if TYPE_CHECKING:
    from ..adapter.usage import RouterUsage


def expert_shares(usage: RouterUsage) -> tuple[float, ...]:
    """Return each expert's share of a router's tokens; they sum to 1.

    Where every token goes to every expert their shares of the gates say more, and are returned.
    """
    return usage.token_share if usage.chooses else usage.gate_share


def specialisation(by_task: Sequence[RouterUsage]) -> float | None:
    """Return how much of a token's task one router's choice of expert gives away.

    It is the mutual information between task and expert, every task counting as much as any other
    (the Jensen-Shannon divergence of their shares), divided by `ln min(N / k, tasks)`, which it
    cannot exceed, since no expert of k has more than 1 / k of a task's choices: 0 where all tasks
    use the experts alike, 1 at most. It is not corrected for chance: few tokens make it larger.

    Args:
        by_task: What the router decided for each task.

    Returns:
        Between 0 and 1; None with fewer than two tasks.
    """
    if len(by_task) < 2:
        return None
    one = by_task[0]
    groups = len(one.token_share) / (one.top_k if one.chooses else 1)
    return min(max(task_information(by_task) / math.log(min(len(by_task), groups)), 0.0), 1.0)


def task_information(by_task: Sequence[RouterUsage]) -> float:
    """Return the mutual information of task and expert, in nats, see `specialisation`."""
    shares = [expert_shares(usage) for usage in by_task]
    return entropy(_mean_shares(shares)) - fmean(map(entropy, shares))


def distance(task: RouterUsage, by_task: Sequence[RouterUsage]) -> float:
    """Return which part of a task's tokens other experts get than on average over the tasks.

    It is the total variation distance between the task's shares and the mean of all tasks'.

    Args:
        task: What one router decided for the task.
        by_task: What it decided for each task, this one included.

    Returns:
        Between 0 and 1.
    """
    mean = _mean_shares([expert_shares(usage) for usage in by_task])
    shares = expert_shares(task)
    return math.fsum(abs(x - y) for x, y in zip(shares, mean, strict=True)) / 2


def _mean_shares(shares: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(column) for column in zip(*shares, strict=True)]
