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
distance wins, the first one of equals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..settings import ESTIMATORS

__all__ = [
    "ESTIMATORS",
    "MIN_EIGENVALUES",
    "OWN_ESTIMATORS",
    "PowerLawFit",
    "fit_ascending",
    "fit_power_law",
]

MIN_EIGENVALUES = 3
"""Fewest eigenvalues that :func:`fit_power_law` accepts: below it no tail has two members."""

_HISTOGRAM_BINS = 100
_WINDOW = (0.95, 1.5)
_EQUAL = 1e-10
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
        tail_size: Number of eigenvalues in the tail, ``x_min`` included.
    """

    alpha: float
    x_min: float
    distance: float
    tail_size: int

    @property
    def standard_error(self) -> float:
        """Asymptotic standard error of alpha, (alpha - 1) / sqrt(tail_size).

        It takes the tail's start as known and the eigenvalues as independent (Clauset et al. 2009,
        equation 3.2); :func:`~axolotl_alphalora.spectral.confidence.bootstrap_alphas` does not
        take the start as known.
        """
        return (self.alpha - 1) / math.sqrt(self.tail_size)


def fit_power_law(eigenvalues: Tensor, method: str = "xmin_peak") -> PowerLawFit:
    r"""Fit a power law to the upper end of a spectrum.

    Multiplying all eigenvalues by a constant multiplies ``x_min`` by it and leaves the rest of
    the result as it is, except for ``xmin_peak_published`` and ``weightwatcher``.

    Estimators:
        ``xmin_peak``: the estimator of AlphaLoRA's released code (arXiv 2410.10054), with its
        lower bound as intended; TempBalance (arXiv 2312.00359) calls it ``fix-finger``,
        AlphaPruning (arXiv 2410.10912) ``xmin_peak``. The eigenvalues' histogram is taken over
        :math:`\log_{10} \lambda` in 100 bins between the smallest and the largest; the peak is
        the left edge of the first tallest bin; a tail may start at any eigenvalue between 0.95
        and 1.5 times the peak. Where no eigenvalue smaller than the largest lies there (possible
        only on a spectrum of more than 17 decades), it starts at the one nearest to the peak on
        the log scale.

        ``xmin_peak_published``: the same with the lower bound that the released code has, where
        :math:`\lambda_i` itself is compared with :math:`\log_{10}(0.95 \cdot \text{peak})`. The
        result depends on the scale of the weights: for a peak below 1.05 there is no lower bound
        at all. For the reproduction of published numbers only.

        ``hill``: the tail is the upper half, from index ``N // 2`` (TempBalance's ``median``,
        AlphaPruning's ``xmin_mid``; the PL_Alpha_Hill metric). Where the eigenvalue there equals
        the largest, the tail starts at the last one that does not.

        ``ks``: the tail may start at any eigenvalue but the largest (Clauset et al. 2009, section
        3.3; TempBalance's ``goodness-of-fit``). The definition of weightwatcher 0.7.7, whose
        ``analyze`` differs in two ways: it first drops eigenvalues up to 1e-5, whatever the
        scale, and below 20 eigenvalues it uses another formula.

        ``weightwatcher``: the fit of the installed weightwatcher itself, see
        :func:`~axolotl_alphalora.spectral.weightwatcher.fit_weightwatcher`.

    Args:
        eigenvalues: Positive finite eigenvalues, 1-D, in any order, of any real dtype, on any
            device. The fit is done in float64 on the CPU.
        method: One of :data:`ESTIMATORS`.

    Returns:
        The fit with the smallest distance among the candidates.

    Raises:
        ValueError: If ``method`` is unknown, or if the eigenvalues are not 1-D, fewer than
            :data:`MIN_EIGENVALUES`, not all positive and finite, or all equal to within 1e-10 of
            their size. For ``weightwatcher`` also where it gives no exponent.
        ImportError: If ``weightwatcher`` is chosen and not installed.
    """
    if method not in ESTIMATORS:
        raise ValueError(f"unknown estimator {method!r}: choose one of {', '.join(ESTIMATORS)}")
    _check(eigenvalues)
    values = eigenvalues.detach().cpu().to(torch.float64).sort().values
    return fit_ascending(values, method)


def fit_ascending(values: Tensor, method: str) -> PowerLawFit:
    """Fit as :func:`fit_power_law` does, without its checks of the single eigenvalues.

    For many fits to values that have been checked once.

    Args:
        values: Positive finite eigenvalues in ascending order, float64, shape (N,), on the CPU.
        method: One of :data:`ESTIMATORS`.

    Raises:
        ValueError: If there are fewer than :data:`MIN_EIGENVALUES` or all are equal to within
            1e-10 of their size. For ``weightwatcher`` also where it gives no exponent.
        ImportError: If ``weightwatcher`` is chosen and not installed.
    """
    size = len(values)
    if size < MIN_EIGENVALUES:
        raise ValueError(f"a power law needs at least {MIN_EIGENVALUES} eigenvalues, got {size}")
    logs = _logs(values)
    if logs[0] > -_EQUAL:
        raise ValueError(
            f"all {size} eigenvalues equal {float(values[-1]):.6g}: no power law fits them"
        )
    if method == _WEIGHTWATCHER:
        # Only on demand: that module needs this one.
        from .weightwatcher import fit_weightwatcher

        return fit_weightwatcher(values)
    starts = _CANDIDATES[method](values, logs, int((logs < 0).sum()))
    starts, alphas = _promising(logs, starts, _exponents(logs)[starts])
    distances = _distances(logs, starts, alphas)
    best = int(distances.argmin())
    start = int(starts[best])
    return PowerLawFit(
        alpha=float(alphas[best]),
        x_min=float(values[start]),
        distance=float(distances[best]),
        tail_size=size - start,
    )


def _check(eigenvalues: Tensor) -> None:
    if eigenvalues.ndim != 1:
        raise ValueError(f"eigenvalues must be 1-D, not of shape {tuple(eigenvalues.shape)}")
    bad = int((~((eigenvalues > 0) & eigenvalues.isfinite())).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(eigenvalues)} eigenvalues are not positive finite numbers: "
            "drop zero and round-off eigenvalues before the fit"
        )


def _logs(values: Tensor) -> Tensor:
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
    the whole distance of another is out, which saves most of the O(N^2) work of ``ks``.
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
    """Return the largest absolute gap of each row, shape (C,); overwrites ``ratios``.

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


def _near_peak(values: Tensor, logs: Tensor, usable: int) -> Tensor:
    offsets = logs[:usable] / math.log(10) - _peak(logs)
    inside = (offsets >= math.log10(_WINDOW[0])) & (offsets <= math.log10(_WINDOW[1]))
    return _indices(inside, offsets)


def _near_peak_published(values: Tensor, logs: Tensor, usable: int) -> Tensor:
    peak = _peak(logs)
    offsets = logs[:usable] / math.log(10) - peak
    lowest = math.log10(_WINDOW[0]) + peak + float(values[-1].log10())
    inside = (values[:usable] >= lowest) & (offsets <= math.log10(_WINDOW[1]))
    return _indices(inside, offsets)


def _indices(inside: Tensor, offsets: Tensor) -> Tensor:
    if not inside.any():
        return offsets.abs().argmin()[None]
    return inside.nonzero()[:, 0]


def _median(values: Tensor, logs: Tensor, usable: int) -> Tensor:
    return torch.tensor([min(len(logs) // 2, usable - 1)])


def _all(values: Tensor, logs: Tensor, usable: int) -> Tensor:
    return torch.arange(usable)


# Each takes the ascending eigenvalues (N,), their logs relative to the largest (N,) and the number
# of them below the largest, and returns the indices at which a tail may start: ascending, at least
# one, all below that number.
_CANDIDATES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "xmin_peak": _near_peak,
    "xmin_peak_published": _near_peak_published,
    "hill": _median,
    "ks": _all,
}

_WEIGHTWATCHER = "weightwatcher"

OWN_ESTIMATORS = tuple(_CANDIDATES)
"""Names of the estimators that need nothing but this module."""
