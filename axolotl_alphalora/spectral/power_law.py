r"""Power-law exponents of the upper end of a weight spectrum.

For eigenvalues :math:`\lambda_0 \le \dots \le \lambda_{N-1}` and a tail that starts at index
:math:`i` and holds :math:`n = N - i` of them, the maximum-likelihood exponent and the
Kolmogorov-Smirnov distance of the fit are (Clauset, Shalizi and Newman, "Power-law distributions
in empirical data", SIAM Review 51, 2009, sections 3.1 and 3.3; AlphaLoRA, arXiv 2410.10054,
section 3):

.. math::

    \alpha_i = 1 + \frac{n}{\sum_{j \ge i} \ln \lambda_j - n \ln \lambda_i}
    \qquad
    D_i = \max_{0 \le j < n} \left| 1 - (\lambda_{i+j} / \lambda_i)^{1 - \alpha_i}
          - \tfrac{j}{n} \right|

An *estimator* only says which indices may start the tail; the candidate with the smallest
distance wins, the first one of equals. Which there are is in `estimators`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Candidates = Callable[[Tensor, Tensor, int], Tensor]
"""Takes the ascending eigenvalues (N,), their logs relative to the largest (N,) and the number of
them below the largest; returns the indices at which a tail may start: ascending, at least one, all
below that number."""

_HISTOGRAM_BINS = 100
_WINDOW = (0.95, 1.5)
_CHUNK_ELEMENTS = 1 << 18
_FEW = 16
_COARSE_POINTS = 32
_ROUND_OFF = 1e-12


@dataclass(frozen=True)
class PowerLawFit:
    """A power law fitted to the upper end of a spectrum.

    Attributes:
        alpha: The exponent, greater than 1.
        x_min: The eigenvalue at which the tail starts.
        distance: Kolmogorov-Smirnov distance between the tail and the fitted law.
        tail_size: Number of eigenvalues in the tail, `x_min` included.
    """

    alpha: float
    x_min: float
    distance: float
    tail_size: int


def fit_tail(values: Tensor, logs: Tensor, candidates: Candidates) -> PowerLawFit:
    """Fit a power law to the tail that fits best.

    Args:
        values: Positive eigenvalues in ascending order, float64, shape (N,), not all equal.
        logs: What `relative_logs` makes of them.
        candidates: Says where a tail may start.
    """
    starts = candidates(values, logs, int((logs < 0).sum()))
    starts, alphas = _promising(logs, starts, _exponents(logs)[starts])
    distances = _distances(logs, starts, alphas)
    best = int(distances.argmin())
    start = int(starts[best])
    return PowerLawFit(
        alpha=float(alphas[best]),
        x_min=float(values[start]),
        distance=float(distances[best]),
        tail_size=len(values) - start,
    )


def relative_logs(values: Tensor) -> Tensor:
    """Return the logs relative to the largest value: an exact zero for each tie with it."""
    top = values[-1]
    # A difference of logs would lose the digits of values next to the largest.
    near = values > top / 2
    return torch.where(near, ((values - top) / top).log1p(), values.log() - top.log())


def _exponents(logs: Tensor) -> Tensor:
    """Return alpha_i for every start of the tail, shape (N,); infinite at ties with the top."""
    suffix_sums = logs.flip(0).cumsum(0).flip(0)
    sizes = torch.arange(len(logs), 0, -1, dtype=logs.dtype)
    return 1 + sizes / (suffix_sums - sizes * logs)


def _promising(logs: Tensor, starts: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
    """Drop starts that cannot win; every start with the smallest distance is kept.

    The gaps at a few points of a tail bound its distance from below. A start whose bound exceeds
    the whole distance of another is out, which saves most of the O(N^2) work of `ks`.
    """
    points = _COARSE_POINTS
    while len(starts) > _FEW and points < len(logs):
        bounds = _lower_bounds(logs, starts, alphas, points)
        best = bounds.topk(_FEW, largest=False).indices.sort().values
        limit = _distances(logs, starts[best], alphas[best]).min()
        kept = bounds <= limit + _ROUND_OFF
        starts, alphas = starts[kept], alphas[kept]
        points *= 4
    return starts, alphas


def _lower_bounds(logs: Tensor, starts: Tensor, alphas: Tensor, points: int) -> Tensor:
    """Return the largest gap at evenly spaced points of each start's tail, shape (C,)."""
    fractions = torch.linspace(0, 1, points, dtype=logs.dtype)
    rows = max(1, _CHUNK_ELEMENTS // points)
    bounds = []
    for first, exponents in zip(starts.split(rows), alphas.split(rows), strict=True):
        sizes = (len(logs) - first)[:, None]  # (C, 1)
        steps = (fractions * (sizes - 1)).long()  # (C, points)
        ratios = logs[first[:, None] + steps] - logs[first][:, None]
        bounds.append(_largest_gap(ratios, exponents, steps / sizes.to(logs.dtype)))
    return torch.cat(bounds)


def _distances(logs: Tensor, starts: Tensor, alphas: Tensor) -> Tensor:
    """Return D_i for ascending starts, shape (C,), in chunks of bounded memory."""
    size, done = len(logs), 0
    positions = torch.arange(size, dtype=logs.dtype)
    distances = []
    while done < len(starts):
        lowest = int(starts[done])
        chunk = slice(done, done + max(1, _CHUNK_ELEMENTS // (size - lowest)))
        first = starts[chunk, None]  # (C, 1)
        # Below a row's start both terms are clamped, which makes its gap an exact zero there.
        ratios = (logs[lowest:] - logs[first]).clamp_(min=0)  # (C, size - lowest)
        shares = (positions[lowest:] - first).clamp_(min=0).div_(size - first)
        distances.append(_largest_gap(ratios, alphas[chunk], shares))
        done = chunk.stop
    return torch.cat(distances)


def _largest_gap(ratios: Tensor, alphas: Tensor, shares: Tensor) -> Tensor:
    """Return the largest absolute gap of each row, shape (C,); overwrites `ratios`.

    Args:
        ratios: Logs of lambda_{i+j} / lambda_i, shape (C, J).
        alphas: Exponents, shape (C,).
        shares: j / n, shape (C, J).
    """
    survival = ratios.mul_((1 - alphas)[:, None]).exp_()
    return survival.add_(shares).sub_(1).abs_().amax(dim=1)


def _peak(logs: Tensor) -> float:
    """Return the left edge of the first tallest bin, in decades relative to the largest."""
    decades = logs / math.log(10)
    low = float(decades[0])
    counts = torch.histc(decades, bins=_HISTOGRAM_BINS, min=low, max=0.0)
    return low * (1 - int(counts.argmax()) / _HISTOGRAM_BINS)


def near_peak(values: Tensor, logs: Tensor, usable: int) -> Tensor:
    """Any eigenvalue between 0.95 and 1.5 times the peak of the histogram."""
    offsets = logs[:usable] / math.log(10) - _peak(logs)
    inside = (offsets >= math.log10(_WINDOW[0])) & (offsets <= math.log10(_WINDOW[1]))
    return _indices(inside, offsets)


def near_peak_published(values: Tensor, logs: Tensor, usable: int) -> Tensor:
    """The same with the lower bound that AlphaLoRA's released code has."""
    peak = _peak(logs)
    offsets = logs[:usable] / math.log(10) - peak
    lowest = math.log10(_WINDOW[0]) + peak + float(values[-1].log10())
    inside = (values[:usable] >= lowest) & (offsets <= math.log10(_WINDOW[1]))
    return _indices(inside, offsets)


def _indices(inside: Tensor, offsets: Tensor) -> Tensor:
    if not inside.any():
        return offsets.abs().argmin()[None]
    return inside.nonzero()[:, 0]


def upper_half(values: Tensor, logs: Tensor, usable: int) -> Tensor:
    """The upper half, or less where it is all ties with the largest."""
    return torch.tensor([min(len(logs) // 2, usable - 1)])


def anywhere(values: Tensor, logs: Tensor, usable: int) -> Tensor:
    """Any eigenvalue but the largest."""
    return torch.arange(usable)
