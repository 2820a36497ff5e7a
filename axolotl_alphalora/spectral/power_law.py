r"""Power-law exponents of the upper end of a weight spectrum.

For eigenvalues :math:`\lambda_0 \le \dots \le \lambda_{N-1}` and a tail that starts at index
:math:`i` and holds :math:`n = N - i` of them, the maximum-likelihood exponent and the
Kolmogorov-Smirnov distance of the fit are (AlphaLoRA, arXiv 2410.10054, section 3):

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

__all__ = ["ESTIMATORS", "MIN_EIGENVALUES", "PowerLawFit", "fit_power_law"]

MIN_EIGENVALUES = 3
"""Fewest eigenvalues that :func:`fit_power_law` accepts: below it no tail has two members."""

_HISTOGRAM_BINS = 100
_WINDOW = (0.95, 1.5)
_EQUAL = 1e-10
_MAX_CHUNK_ELEMENTS = 1 << 21


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


def fit_power_law(eigenvalues: Tensor, method: str = "xmin_peak") -> PowerLawFit:
    r"""Fit a power law to the upper end of a spectrum.

    Multiplying all eigenvalues by a constant multiplies ``x_min`` by it and leaves the rest of
    the result as it is.

    Estimators:
        ``xmin_peak``: the estimator of AlphaLoRA's released code. The eigenvalues' histogram is
        taken over :math:`\log_{10} \lambda` in 100 bins between the smallest and the largest; the
        peak is the left edge of the first tallest bin; a tail may start at any eigenvalue between
        0.95 and 1.5 times the peak. Where no eigenvalue smaller than the largest lies there
        (possible only on a spectrum of more than 17 decades), it starts at the one nearest to the
        peak on the log scale.

        ``hill``: the tail is the upper half, from index ``N // 2``. Where the eigenvalue there
        equals the largest, the tail starts at the last one that does not.

    Args:
        eigenvalues: Positive finite eigenvalues, 1-D, in any order and of any real dtype. The fit
            is done in float64 on the tensor's device.
        method: One of :data:`ESTIMATORS`.

    Returns:
        The fit with the smallest distance among the candidates.

    Raises:
        ValueError: If ``method`` is unknown, or if the eigenvalues are not 1-D, fewer than
            :data:`MIN_EIGENVALUES`, not all positive and finite, or all equal to within 1e-10 of
            their size.
    """
    if method not in _CANDIDATES:
        raise ValueError(f"unknown estimator {method!r}: choose one of {', '.join(ESTIMATORS)}")
    _check(eigenvalues)
    values = eigenvalues.detach().to(torch.float64).sort().values
    # Logs relative to the largest: a tail of ties with it sums to an exact zero.
    logs = values.log() - values[-1].log()
    usable = int((logs < 0).sum())
    if logs[0] > -_EQUAL:
        raise ValueError(
            f"all {len(values)} eigenvalues equal {float(values[-1]):.6g}: no power law fits them"
        )
    candidates = _CANDIDATES[method](logs, usable)
    alphas = _exponents(logs)[candidates]
    distances = _distances(logs, candidates, alphas)
    best = int(distances.argmin())
    start = int(candidates[best])
    return PowerLawFit(
        alpha=float(alphas[best]),
        x_min=float(values[start]),
        distance=float(distances[best]),
        tail_size=len(values) - start,
    )


def _check(eigenvalues: Tensor) -> None:
    if eigenvalues.ndim != 1:
        raise ValueError(f"eigenvalues must be 1-D, not of shape {tuple(eigenvalues.shape)}")
    if len(eigenvalues) < MIN_EIGENVALUES:
        raise ValueError(
            f"a power law needs at least {MIN_EIGENVALUES} eigenvalues, got {len(eigenvalues)}"
        )
    bad = int((~((eigenvalues > 0) & eigenvalues.isfinite())).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(eigenvalues)} eigenvalues are not positive finite numbers: "
            "drop zero and round-off eigenvalues before the fit"
        )


def _exponents(logs: Tensor) -> Tensor:
    """Return alpha_i for every start of the tail, shape (N,); infinite at ties with the top."""
    suffix_sums = logs.flip(0).cumsum(0).flip(0)
    sizes = torch.arange(len(logs), 0, -1, dtype=logs.dtype, device=logs.device)
    return 1 + sizes / (suffix_sums - sizes * logs)


def _distances(logs: Tensor, candidates: Tensor, alphas: Tensor) -> Tensor:
    """Return D_i for the candidates, shape (C,), in chunks of bounded memory."""
    rows = max(1, _MAX_CHUNK_ELEMENTS // len(logs))
    # Floating positions: the quotient of two integer tensors would be float32.
    positions = torch.arange(len(logs), dtype=logs.dtype, device=logs.device)
    distances = []
    for starts, exponents in zip(candidates.split(rows), alphas.split(rows), strict=True):
        steps = positions - starts[:, None]  # (C, N)
        sizes = (len(logs) - starts)[:, None]  # (C, 1)
        ratios = logs - logs[starts][:, None]  # (C, N), logs of lambda_j / lambda_i
        survival = ratios.mul_((1 - exponents)[:, None]).exp_()
        gaps = survival.add_(steps / sizes).sub_(1).abs_()
        distances.append(gaps.masked_fill_(steps < 0, 0).amax(dim=1))
    return torch.cat(distances)


def _near_peak(logs: Tensor, usable: int) -> Tensor:
    decades = logs / math.log(10)
    low = float(decades[0])
    counts = torch.histc(decades, bins=_HISTOGRAM_BINS, min=low, max=0.0)
    peak = low * (1 - int(counts.argmax()) / _HISTOGRAM_BINS)
    offsets = decades[:usable] - peak
    inside = (offsets >= math.log10(_WINDOW[0])) & (offsets <= math.log10(_WINDOW[1]))
    if not inside.any():
        return offsets.abs().argmin()[None]
    return inside.nonzero()[:, 0]


def _median(logs: Tensor, usable: int) -> Tensor:
    return torch.tensor([min(len(logs) // 2, usable - 1)], device=logs.device)


# Each takes the ascending logs (N,) and the number of them below the largest, and returns the
# indices at which a tail may start: at least one, all below that number.
_CANDIDATES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "xmin_peak": _near_peak,
    "hill": _median,
}

ESTIMATORS = tuple(_CANDIDATES)
"""Names of the estimators that :func:`fit_power_law` knows."""
