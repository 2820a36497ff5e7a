"""Methods against a reference, pair by pair: the same seeds and rows, each at its own best rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

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


def comparisons(
    setting: Setting, methods: Sequence[str], reference: str, done: Mapping[str, Line]
) -> list[list[str]]:
    """A row for each method that shares seeds with a reference: see `report.COMPARED`."""
    theirs = Runs(setting, reference, done)
    untrained = done.get(setting.untrained().key)
    found = {method: Runs(setting, method, done) for method in methods}
    found = {method: runs for method, runs in found.items() if set(runs.lines) & set(theirs.lines)}
    if set(found) <= {reference}:
        return []
    p_values = {}
    for method, runs in found.items():
        p = paired_p([runs.losses[seed] - theirs.losses[seed] for seed in _shared(runs, theirs)])
        if method != reference and p is not None:
            p_values[method] = p
    corrected = holm(p_values)
    return [
        _row(method, runs, theirs, untrained, p_values.get(method), corrected.get(method))
        for method, runs in found.items()
    ]


def _shared(runs: Runs, theirs: Runs) -> list[int]:
    return [seed for seed in runs.lines if seed in theirs.lines]


def _row(
    method: str,
    runs: Runs,
    theirs: Runs,
    untrained: Line | None,
    p: float | None,
    corrected: float | None,
) -> list[str]:
    seeds = _shared(runs, theirs)
    mean = fmean(theirs.losses[seed] for seed in seeds)
    own = difference(runs, theirs, seeds)
    labels = np.array(theirs.lines[seeds[0]]["held_out"]["labels"])
    low, high = interval(own, labels)
    middle = own.mean(0).sum() / labels.sum()
    same = runs.lines.keys() == theirs.lines.keys() and not own.any()
    return [
        f"`{method}`",
        f"{runs.lines[seeds[0]]['parameters']:,}",
        f"{runs.rate:g}",
        str(len(seeds)),
        f"{fmean(runs.losses[seed] for seed in seeds):.4f}",
        "" if same else f"{100 * middle / mean:+.2f} %",
        "" if same else f"{100 * low / mean:+.2f} to {100 * high / mean:+.2f} %",
        "" if p is None else f"{p:.3f}",
        "" if corrected is None else f"{corrected:.3f}",
        *_forgetting(runs, seeds, untrained),
    ]


def difference(runs: Runs, theirs: Runs, seeds: Sequence[int]) -> np.ndarray:
    """Differences of the held-out rows' losses, in nats: [seeds, rows]."""
    return np.array(
        [
            np.subtract(
                runs.lines[seed]["held_out"]["rows"], theirs.lines[seed]["held_out"]["rows"]
            )
            for seed in seeds
        ]
    )


def _forgetting(runs: Runs, seeds: Sequence[int], untrained: Line | None) -> list[str]:
    """How much the loss on the text and on other sets rose over the base model's."""
    if untrained is None:
        return ["", ""]
    before = untrained["others"]
    rise = {
        name: fmean(runs.lines[seed]["others"][name] for seed in seeds) - before[name]
        for name in before
    }
    sets = [value for name, value in rise.items() if name != "text"]
    return [f"{rise['text']:+.4f}", f"{fmean(sets):+.4f}" if sets else ""]
