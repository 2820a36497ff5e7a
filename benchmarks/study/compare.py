"""Methods against others, pair by pair: the same seeds and rows, each at its own best rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

import numpy as np

from .cells import RATES, SEEDS, Line, Setting, best_rate, losses
from .chart import signed
from .stats import LEVEL, holm, interval, mean_interval, paired_p, pairs_for, power

MINIMUM = 0.005
"""The least difference of held-out loss that would matter, as a part of it, fixed beforehand.

It is half of what separated a plain LoRA of rank 40 from five experts of rank 8 in the probe before
the study (1.1075 and 1.1188, one seed, one rate): less than that would not decide for a shape.
"""


BETTER, WORSE, SAME, OPEN, FEW = "better", "worse", "within 0.5 %", "undecided", "too few seeds"
VERDICTS = (BETTER, SAME, OPEN, WORSE, FEW)
"""What may come of a comparison, see `Comparison.verdict`."""


Pair = tuple[str, str]


class Runs:
    """The runs of a method at the best rate of its curve.

    Attributes:
        rate: That rate; None while the curve is not done.
        lines: Seed to line, for the seeds that have been run; empty while the curve is not done.
        beside: How far the least loss of a parabola through the best rate and its neighbours lies
            below that of the best rate, as a part of it; None for a method without a curve.
    """

    def __init__(
        self,
        setting: Setting,
        method: str,
        done: Mapping[str, Line],
        seeds: Sequence[int] = SEEDS,
    ) -> None:
        self.rate = best_rate(setting, method, done)
        keys = {}
        if self.rate is not None:
            keys = {seed: setting.cell(method, self.rate, seed).key for seed in seeds}
        self.lines = {seed: done[key] for seed, key in keys.items() if key in done}
        curve = {} if method in RATES else losses(setting, method, done)
        self.beside = _beside(curve, self.rate)

    @property
    def losses(self) -> dict[int, float]:
        """Seed to held-out loss."""
        return {seed: line["held_out"]["loss"] for seed, line in self.lines.items()}


def _beside(curve: Mapping[float, float], rate: float | None) -> float | None:
    """See `Runs.beside`; rates are a factor 2 apart, the parabola is over their logarithm."""
    if rate is None or any(near not in curve for near in (rate / 2, rate, 2 * rate)):
        return None
    below, best, above = (curve[near] for near in (rate / 2, rate, 2 * rate))
    bent = above + below - 2 * best
    return (above - below) ** 2 / (8 * bent) / best if bent else 0.0


COMPARED = (
    "method",
    "against",
    "parameters",
    "rate",
    "seeds",
    "held-out loss",
    "difference",
    "95 % interval",
    "without seed 0",
    "p",
    "p, Holm",
    "verdict",
    f"seeds for {100 * MINIMUM:g} %",
    f"chance for {100 * MINIMUM:g} %",
    "mean of tasks",
    "better on tasks",
)
"""Heads of a table of comparisons, see `Comparison.row`."""


@dataclass(frozen=True)
class Comparison:
    """A method against another, over the seeds that both have.

    Attributes:
        method: Which.
        against: The other one.
        runs: Of the method.
        theirs: Of the other one.
        seeds: Those of both.
        middle: Mean difference of held-out loss, as a part of the other's; negative where the
            method is better. So are the next two.
        low: Lower end of its 95 % interval: the outer one of the bootstrap's, over seeds and
            rows, and Student's t, over seeds.
        high: Upper end.
        p: Of a paired t-test over seeds; None where there is none.
        corrected: The same after Holm's correction, if it has all seeds.
        family: How many comparisons it is corrected for.
        wanted: How many seeds it is to have.
        of_tasks: Mean and interval (Student's t over seeds) of the difference where every task
            counts the same, as parts; None with one task.
    """

    method: str
    against: str
    runs: Runs
    theirs: Runs
    seeds: tuple[int, ...]
    middle: float
    low: float
    high: float
    p: float | None
    corrected: float | None = None
    family: int = 1
    wanted: int = len(SEEDS)
    of_tasks: tuple[float, ...] | None = None

    @property
    def complete(self) -> bool:
        """Whether all seeds that are wanted were run for both."""
        return len(self.seeds) == self.wanted

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`.

        Without all seeds there is none. The third asks for an interval within the least difference
        that matters; better and worse for one on one side of 0, and a p below 0.05 after
        correction.
        """
        if not self.complete:
            return FEW
        if max(-self.low, self.high) <= MINIMUM:
            return SAME
        shown = self.corrected is not None and self.corrected < LEVEL
        if shown and (self.low > 0 or self.high < 0):
            return BETTER if self.middle < 0 else WORSE
        return OPEN

    @property
    def others(self) -> float | None:
        """Mean difference, as a part, without the seed that chose the learning rate."""
        seeds = [seed for seed in self.seeds if seed != SEEDS[0]]
        if not seeds or SEEDS[0] not in self.seeds:
            return None
        mean = fmean(self.theirs.losses[seed] for seed in seeds)
        return fmean(_apart(self.runs, self.theirs, seeds)) / mean

    @property
    def more(self) -> float:
        """Trained parameters of the method beyond the other's, as a part of these."""
        own, other = (runs.lines[self.seeds[0]]["parameters"] for runs in (self.runs, self.theirs))
        return own / other - 1

    @property
    def finer(self) -> float | None:
        """The difference if both had the least of their parabolas, see `Runs.beside`."""
        if self.runs.beside is None or self.theirs.beside is None:
            return None
        return self.middle + self.theirs.beside - self.runs.beside

    @property
    def needed(self) -> str:
        """Seeds with which a true difference of `MINIMUM` would be found in its family.

        "" without all seeds.
        """
        if not self.complete:
            return ""
        found = pairs_for(*self._spread, level=LEVEL / self.family)
        return str(found) if found else "over 100"

    @property
    def chance(self) -> float | None:
        """How often these seeds would find a true difference of `MINIMUM` in its family.

        None without all seeds.
        """
        if not self.complete:
            return None
        level = LEVEL / self.family
        return power(*reversed(self._spread), pairs=len(self.seeds), level=level)

    @property
    def _spread(self) -> tuple[float, float]:
        """Deviation over seeds, and the least difference that matters, in nats."""
        mean = fmean(self.theirs.losses[seed] for seed in self.seeds)
        return stdev(_apart(self.runs, self.theirs, self.seeds)), MINIMUM * mean

    def row(self) -> list[str]:
        """Its row of a table, see `COMPARED`.

        The last but one is the number of seeds that would show the least difference that matters;
        `tasks` are those on which the method is the better one.
        """
        better, tasks = _tasks(self.runs, self.theirs, self.seeds)
        return [
            f"`{self.method}`",
            f"`{self.against}`",
            f"{self.runs.lines[self.seeds[0]]['parameters']:,}",
            f"{self.runs.rate:g}",
            str(len(self.seeds)),
            f"{fmean(self.runs.losses[seed] for seed in self.seeds):.4f}",
            percent(self.middle),
            f"{signed(100 * self.low)} to {signed(100 * self.high)} %" if self.complete else "",
            "" if self.others is None else percent(self.others),
            "" if self.p is None else f"{self.p:.3f}",
            "" if self.corrected is None else f"{self.corrected:.3f}",
            self.verdict,
            self.needed,
            "" if self.chance is None else f"{100 * self.chance:.0f} %",
            "" if self.of_tasks is None else percent(*self.of_tasks),
            f"{better} of {tasks}" if tasks > 1 else "",
        ]


def percent(middle: float, *ends: float) -> str:
    """A difference and its interval, if it has one, in percent."""
    around = f" ({signed(100 * ends[0])} to {signed(100 * ends[1])})" if ends else ""
    return f"{signed(100 * middle)} %{around}"


def comparisons(
    setting: Setting,
    pairs: Sequence[Pair],
    done: Mapping[str, Line],
    seeds: Sequence[int] = SEEDS,
) -> dict[Pair, Comparison]:
    """Compare each pair of methods that share seeds.

    Args:
        setting: Where.
        pairs: A method, and what it is compared with; p values are corrected for all of them,
            those that have not been run included.
        done: Key of a cell to its line.
        seeds: Those that are to be run.

    Raises:
        ValueError: If two runs of a pair were not trained and measured alike; names them.
    """
    found = {}
    for pair in pairs:
        runs, theirs = (Runs(setting, method, done, seeds) for method in pair)
        both = tuple(seed for seed in runs.lines if seed in theirs.lines)
        if both and pair[0] != pair[1]:
            found[pair] = replace(_compared(pair, runs, theirs, both), wanted=len(seeds))
    known = {pair: one.p for pair, one in found.items() if one.complete and one.p is not None}
    corrected = holm(known, len(pairs))
    return {
        pair: replace(one, corrected=corrected.get(pair), family=len(pairs))
        for pair, one in found.items()
    }


def _compared(pair: Pair, runs: Runs, theirs: Runs, seeds: tuple[int, ...]) -> Comparison:
    mean = fmean(theirs.losses[seed] for seed in seeds)
    own = difference(runs, theirs, seeds)
    labels = np.array(theirs.lines[seeds[0]]["held_out"]["labels"])
    apart = _apart(runs, theirs, seeds)
    ends = (*interval(own, labels), *mean_interval(apart))
    middle = own.mean(0).sum() / labels.sum()
    middle, low, high = (float(value / mean) for value in (middle, min(ends), max(ends)))
    p, of_tasks = paired_p(apart), _of_tasks(runs, theirs, seeds)
    return Comparison(*pair, runs, theirs, seeds, middle, low, high, p, of_tasks=of_tasks)


def _apart(runs: Runs, theirs: Runs, seeds: Sequence[int]) -> list[float]:
    """The difference of held-out loss, seed by seed."""
    return [runs.losses[seed] - theirs.losses[seed] for seed in seeds]


def _by_task(of: Runs, seed: int) -> dict[str, float]:
    """Task to the loss of a seed."""
    return of.lines[seed]["held_out"]["by_task"]


def _of_tasks(runs: Runs, theirs: Runs, seeds: Sequence[int]) -> tuple[float, ...] | None:
    """See `Comparison.of_tasks`; without an interval for one seed."""
    if len(_by_task(runs, seeds[0])) < 2:
        return None
    own, other = ([fmean(_by_task(of, seed).values()) for seed in seeds] for of in (runs, theirs))
    apart = [one - its for one, its in zip(own, other, strict=True)]
    return tuple(value / fmean(other) for value in (fmean(apart), *mean_interval(apart)))


def _tasks(runs: Runs, theirs: Runs, seeds: Sequence[int]) -> tuple[int, int]:
    """On how many tasks a method's mean loss is the lower one, and how many tasks there are."""

    def means(of: Runs) -> dict[str, float]:
        names = _by_task(of, seeds[0])
        return {task: fmean(_by_task(of, seed)[task] for seed in seeds) for task in names}

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
