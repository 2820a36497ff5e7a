"""A sample, and how samples are shared out over tasks and halved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sample:
    """One sequence as the model takes it.

    Attributes:
        task: The task that the sequence counts for.
        inputs: The model's arguments, ``[1, T]`` tensors on the CPU: ``input_ids``, ``labels`` and
            whatever else there is for each token.
    """

    task: str
    inputs: Mapping[str, Tensor]


def share_out(count: int, available: Mapping[str, float]) -> dict[str, int]:
    """Share a number out among tasks as evenly as what they have allows.

    Args:
        count: What to share out.
        available: The most that each task can take; may be infinite.

    Returns:
        Task to its share, in the order given; earlier tasks get what is left over. The shares of
        two tasks differ by more than one only if the smaller is all that its task can take, and
        they add up to `count` if the tasks can take as much.
    """
    shares = dict.fromkeys(available, 0)
    while takers := [task for task in shares if shares[task] < available[task]]:
        takers = takers[: count - sum(shares.values())]
        if not takers:
            break
        for task in takers:
            shares[task] += 1
    return shares


def every_second(tasks: Sequence[str]) -> list[int]:
    """Say which half each sample is in.

    Args:
        tasks: The task of each sample.

    Returns:
        0 for the first, third, ... sample of a task, 1 for the others.
    """
    seen: Counter[str] = Counter()
    halves = []
    for task in tasks:
        halves.append(seen[task] % 2)
        seen[task] += 1
    return halves
