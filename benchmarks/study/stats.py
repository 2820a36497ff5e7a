"""Intervals, paired tests and what they can see; small samples, so by Student's t."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy import stats as distributions
from scipy.optimize import brentq

RESAMPLES = 10_000
LEVEL, POWER = 0.05, 0.8


def paired_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of the paired t-test; None with fewer than two pairs or no spread."""
    if len(differences) < 2 or (spread := stdev(differences)) == 0:
        return None
    t = fmean(differences) / (spread / math.sqrt(len(differences)))
    return float(2 * distributions.t.sf(abs(t), len(differences) - 1))


def holm(p_values: Mapping[Any, float], planned: int = 0) -> dict[Any, float]:
    """Holm's correction for the number of comparisons.

    Args:
        p_values: Of those that were made.
        planned: How many there are to be; those that are missing count as the largest.
    """
    found, largest, number = {}, 0.0, max(planned, len(p_values))
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[name] * (number - place)))
        found[name] = largest
    return found


def mean_interval(differences: Sequence[float]) -> tuple[float, ...]:
    """The 95 % interval of a mean by Student's t; empty for a single value."""
    number = len(differences)
    if number < 2:
        return ()
    quantile = float(distributions.t.ppf(1 - LEVEL / 2, number - 1))
    half = quantile * stdev(differences) / math.sqrt(number)
    return fmean(differences) - half, fmean(differences) + half


def power(difference: float, deviation: float, pairs: int, level: float = LEVEL) -> float:
    """How often a paired t-test finds a mean difference, by the noncentral t.

    Args:
        difference: The true one.
        deviation: Standard deviation of a pair's difference.
        pairs: Their number, at least 2.
        level: Of the test, two-sided.
    """
    if not deviation:
        return 1.0
    far = distributions.t.ppf(1 - level / 2, pairs - 1)
    shift = difference / deviation * math.sqrt(pairs)
    above, below = (distributions.nct.sf(far, pairs - 1, own) for own in (shift, -shift))
    return float(above + below)


def visible(deviation: float, pairs: int, level: float = LEVEL) -> float:
    """The mean difference that a paired t-test finds with the study's power, see `power`."""
    high = deviation
    while power(high, deviation, pairs, level) < POWER:
        high *= 2
    found = brentq(lambda own: power(own, deviation, pairs, level) - POWER, 0, high)
    return float(found)


def pairs_for(
    deviation: float, difference: float, most: int = 100, level: float = LEVEL
) -> int | None:
    """The fewest pairs with which a mean difference is `visible`; None beyond `most`."""
    fits = (n for n in range(2, most + 1) if power(difference, deviation, n, level) >= POWER)
    return next(fits, None)


def interval(
    differences: np.ndarray, labels: np.ndarray, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The 95 % interval of a mean difference per label, by bootstrap over seeds and rows.

    Args:
        differences: [seeds, rows], in nats; the same rows for all seeds.
        labels: [rows], labels of each row.
        resamples: How many; the same ones every time.
    """
    seeds, rows = differences.shape
    own, counts = (np.ascontiguousarray(array, float).tobytes() for array in (differences, labels))
    return _ends(own, counts, seeds, rows, resamples)


@lru_cache(maxsize=1000)  # a page asks for the same comparisons again and again
def _ends(
    differences: bytes, labels: bytes, seeds: int, rows: int, resamples: int
) -> tuple[float, float]:
    random = np.random.default_rng(0)
    by_seed = random.multinomial(seeds, [1 / seeds] * seeds, resamples) / seeds
    by_row = random.multinomial(rows, [1 / rows] * rows, resamples)
    own = np.frombuffer(differences).reshape(seeds, rows)
    found = ((by_seed @ own) * by_row).sum(1) / (by_row @ np.frombuffer(labels))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
