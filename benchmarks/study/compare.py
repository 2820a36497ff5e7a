"""Methods against others, pair by pair: the same seeds and rows, each at its own best rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from .cells import SEEDS, Line, Setting, best_rate
from .stats import holm, interval, paired_p

MINIMUM = 0.005
"""The least difference of held-out loss that would matter, as a part of it, fixed beforehand.

It is half of what separated a plain LoRA of rank 40 from five experts of rank 8 in the probe before
the study (1.1075 and 1.1188, one seed, one rate): less than that would not decide for a shape.
"""


class Runs:
    """The runs of a method at the best rate of its curve.

    Attributes:
        lines: Seed to line, for the seeds that have been run; empty while the curve is not done.
    """

    def __init__(self, setting: Setting, method: str, done: Mapping[str, Line]) -> None:
        self.rate = best_rate(setting, method, done)
        keys = {}
        if self.rate is not None:
            keys = {seed: setting.cell(method, self.rate, seed).key for seed in SEEDS}
        self.lines = {seed: done[key] for seed, key in keys.items() if key in done}

    @property
    def losses(self) -> dict[int, float]:
        """Seed to held-out loss."""
        return {seed: line["held_out"]["loss"] for seed, line in self.lines.items()}


COMPARED = (
    "method",
    "against",
    "parameters",
    "rate",
    "seeds",
    "held-out loss",
    "difference",
    "95 % interval",
    "p",
    "p, Holm",
    "tasks",
)
"""Heads of a table of comparisons; `tasks` are those on which the method is the better one."""


def comparisons(
    setting: Setting, pairs: Sequence[tuple[str, str]], done: Mapping[str, Line]
) -> list[list[str]]:
    """A row, see `COMPARED`, for each pair of methods that share seeds.

    Args:
        setting: Where.
        pairs: A method, and what it is compared with; the p values of all are corrected together.
        done: Key of a cell to its line.

    Raises:
        ValueError: If two runs of a pair were not trained and measured alike; names them.
    """
    found = {}
    for pair in pairs:
        runs, theirs = (Runs(setting, method, done) for method in pair)
        seeds = [seed for seed in runs.lines if seed in theirs.lines]
        if seeds and pair[0] != pair[1]:
            found[pair] = runs, theirs, seeds
    p_values = {}
    for pair, (runs, theirs, seeds) in found.items():
        p = paired_p([runs.losses[seed] - theirs.losses[seed] for seed in seeds])
        if p is not None:
            p_values[pair] = p
    corrected = holm(p_values)
    return [_row(pair, *found[pair], p_values.get(pair), corrected.get(pair)) for pair in found]


def _row(
    pair: tuple[str, str],
    runs: Runs,
    theirs: Runs,
    seeds: Sequence[int],
    p: float | None,
    corrected: float | None,
) -> list[str]:
    mean = fmean(theirs.losses[seed] for seed in seeds)
    own = difference(runs, theirs, seeds)
    labels = np.array(theirs.lines[seeds[0]]["held_out"]["labels"])
    low, high = interval(own, labels)
    middle = own.mean(0).sum() / labels.sum()
    better, tasks = _tasks(runs, theirs, seeds)
    return [
        f"`{pair[0]}`",
        f"`{pair[1]}`",
        f"{runs.lines[seeds[0]]['parameters']:,}",
        f"{runs.rate:g}",
        str(len(seeds)),
        f"{fmean(runs.losses[seed] for seed in seeds):.4f}",
        f"{100 * middle / mean:+.2f} %",
        f"{100 * low / mean:+.2f} to {100 * high / mean:+.2f} %",
        "" if p is None else f"{p:.3f}",
        "" if corrected is None else f"{corrected:.3f}",
        f"{better} of {tasks}" if tasks > 1 else "",
    ]


def _tasks(runs: Runs, theirs: Runs, seeds: Sequence[int]) -> tuple[int, int]:
    """On how many tasks a method's mean loss is the lower one, and how many tasks there are."""

    def means(of: Runs) -> dict[str, float]:
        by_seed = [of.lines[seed]["held_out"]["by_task"] for seed in seeds]
        return {task: fmean(one[task] for one in by_seed) for task in by_seed[0]}

    own, other = means(runs), means(theirs)
    return sum(own[task] < other[task] for task in own), len(own)


def difference(runs: Runs, theirs: Runs, seeds: Sequence[int]) -> np.ndarray:
    """Differences of the held-out rows' losses, in nats: [seeds, rows].

    Raises:
        ValueError: If the runs of a seed differ in rows or recipe; names their cells.
    """
    pairs = [(runs.lines[seed], theirs.lines[seed]) for seed in seeds]
    for own, other in pairs:
        for what, value in _conditions(own).items():
            if value != _conditions(other).get(what, value):
                raise ValueError(
                    f"{own['cell']} and {other['cell']} cannot be compared: their {what} differ"
                )
    return np.array(
        [np.subtract(own["held_out"]["rows"], other["held_out"]["rows"]) for own, other in pairs]
    )


def _conditions(line: Line) -> dict[str, Any]:
    """What two runs must have in common; the digest of rows is not in the oldest lines."""
    known = {"labels": line["held_out"]["labels"], "recipes": line["recipe"]}
    return known | ({"rows": line["digest"]} if "digest" in line else {})


def means(
    setting: Setting, methods: Sequence[str], done: Mapping[str, Line], of: Callable[[Line], Any]
) -> dict[str, dict[str, float]]:
    """Method to the figures that are read from its runs at the best rate, in the mean of its seeds.

    Args:
        setting: Where.
        methods: Which; those without such runs, or without figures, are left out.
        done: Key of a cell to its line.
        of: Reads a line's figures by name.
    """
    found = {}
    for method in methods:
        figures = [own for line in Runs(setting, method, done).lines.values() if (own := of(line))]
        if figures:
            found[method] = {
                name: fmean(own[name] for own in figures)
                for name in figures[0]
                if all(name in own for own in figures)
            }
    return found
