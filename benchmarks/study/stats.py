"""Intervals, paired tests and what they can see; small samples, so by Student's t."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np

RESAMPLES = 10_000
LEVEL, POWER = 0.05, 0.8
_Z = 1.959964


def wilson(right: int, rows: int) -> tuple[float, float]:
    """The 95 % interval of a share of rows (Wilson's score interval)."""
    share, square = right / rows, _Z * _Z / rows
    middle = (share + square / 2) / (1 + square)
    half = _Z * math.sqrt(share * (1 - share) / rows + square / (4 * rows)) / (1 + square)
    return middle - half, middle + half


def t_cdf(t: float, freedom: int) -> float:
    """P(T <= t) for Student's t with a whole number of degrees of freedom.

    By the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    cosine, total = math.cos(angle), 0.0
    if freedom % 2:
        term = cosine
        for k in range(3, freedom + 1, 2):
            total += term
            term *= cosine * cosine * (k - 1) / k
        inside = (angle + math.sin(angle) * total) * 2 / math.pi
    else:
        term = 1.0
        for k in range(2, freedom + 1, 2):
            total += term
            term *= cosine * cosine * (k - 1) / k
        inside = math.sin(angle) * total
    return 0.5 + inside / 2


def t_quantile(share: float, freedom: int) -> float:
    """The t that a share of the distribution is below; 0.5 <= share < 1."""
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < share:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < share else (low, middle)
    return high


def paired_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of the paired t-test; None with fewer than two pairs or no spread."""
    if len(differences) < 2 or (spread := stdev(differences)) == 0:
        return None
    t = fmean(differences) / (spread / math.sqrt(len(differences)))
    return 2 * (1 - t_cdf(abs(t), len(differences) - 1))


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
    half = t_quantile(1 - LEVEL / 2, number - 1) * stdev(differences) / math.sqrt(number)
    return fmean(differences) - half, fmean(differences) + half


def visible(deviation: float, pairs: int, level: float = LEVEL) -> float:
    """The mean difference that a paired t-test finds with the study's power.

    Args:
        deviation: Standard deviation of a pair's difference.
        pairs: Their number, at least 2.
        level: Of the test, two-sided.
    """
    freedom = pairs - 1
    factor = t_quantile(1 - level / 2, freedom) + t_quantile(POWER, freedom)
    return factor * deviation / math.sqrt(pairs)


def pairs_for(
    deviation: float, difference: float, most: int = 100, level: float = LEVEL
) -> int | None:
    """The fewest pairs with which a mean difference is `visible`; None beyond `most`."""
    fits = (n for n in range(2, most + 1) if visible(deviation, n, level) <= difference)
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
    random = np.random.default_rng(0)
    seeds, rows = differences.shape
    by_seed = random.multinomial(seeds, [1 / seeds] * seeds, resamples) / seeds
    by_row = random.multinomial(rows, [1 / rows] * rows, resamples)
    found = ((by_seed @ differences) * by_row).sum(1) / (by_row @ labels)
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
