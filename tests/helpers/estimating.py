"""The power-law fit in plain loops, and the estimators that need no optional package."""

import math
from dataclasses import dataclass

from axolotl_alphalora.spectral.estimators import TABLE

OWN_ESTIMATORS = [name for name, estimator in TABLE.items() if estimator.package is None]


@dataclass
class PlainFit:
    alpha: float
    x_min: float
    distance: float
    tail_size: int


def plain_fit(eigenvalues, method):
    """Follow the formulas with Python floats, one candidate and one eigenvalue at a time."""
    lam = sorted(float(value) for value in eigenvalues)
    size = len(lam)
    if method == "hill":
        starts = [size // 2]
    elif method == "ks":
        starts = range(size - 1)
    else:
        logs = [math.log10(value) for value in lam]
        width = (logs[-1] - logs[0]) / 100
        counts = [0] * 100
        for value in logs:
            counts[min(int((value - logs[0]) / width), 99)] += 1
        peak = 10 ** (logs[0] + counts.index(max(counts)) * width)
        low = math.log10(0.95 * peak) if method == "xmin_peak_published" else 0.95 * peak
        starts = [i for i in range(size - 1) if low <= lam[i] <= 1.5 * peak]
    best = None
    logs = [math.log(value) for value in lam]
    for i in starts:
        n = size - i
        alpha = 1 + n / (sum(logs[i:]) - n * logs[i])
        distance = 0.0
        for j in range(n):
            distance = max(distance, abs(1 - (lam[i + j] / lam[i]) ** (1 - alpha) - j / n))
        if best is None or distance < best.distance:
            best = PlainFit(alpha, lam[i], distance, n)
    return best
