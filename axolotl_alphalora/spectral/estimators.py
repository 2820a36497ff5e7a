"""The estimators of power-law exponents by their names: how each fits, and what it needs.

`weightwatcher` was written against weightwatcher 0.7.7, which is optional and imported on first
use. Its exponent is that of `ks` with two differences, both its own: eigenvalues up to 1e-5 are
dropped whatever the scale of the weights, and a fit to fewer than 20 eigenvalues corrects the
exponent for bias and uses tails of at least 8.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..settings import ESTIMATORS
from .power_law import (
    PowerLawFit,
    anywhere,
    fit_tail,
    near_peak,
    near_peak_published,
    relative_logs,
    upper_half,
)

MIN_EIGENVALUES = 3
"""Fewest eigenvalues that `fit_power_law` accepts: below it no tail has two members."""

_EQUAL = 1e-10


@dataclass(frozen=True)
class Estimator:
    """A way to fit a power law.

    Attributes:
        fit: Takes ascending positive eigenvalues, float64, shape (N,), on the CPU, not all equal,
            and their logs relative to the largest.
        of_matrix: Analyses a whole weight matrix by itself, in place of its spectrum; None if it
            has no such way.
        package: The optional package that answers, whose release decides what; None for ours.
    """

    fit: Callable[[Tensor, Tensor], PowerLawFit]
    of_matrix: Callable[[Tensor], PowerLawFit] | None = None
    package: str | None = None


def fit_power_law(eigenvalues: Tensor, method: str = "xmin_peak") -> PowerLawFit:
    r"""Fit a power law to the upper end of a spectrum.

    Multiplying all eigenvalues by a constant multiplies `x_min` by it and leaves the rest of
    the result as it is, except for `xmin_peak_published` and `weightwatcher`.

    Estimators:
        `xmin_peak`: the estimator of AlphaLoRA's released code (arXiv 2410.10054), with its
        lower bound as intended; TempBalance (arXiv 2312.00359) calls it `fix-finger`,
        AlphaPruning (arXiv 2410.10912) `xmin_peak`. The eigenvalues' histogram is taken over
        :math:`\log_{10} \lambda` in 100 bins between the smallest and the largest; the peak is
        the left edge of the first tallest bin; a tail may start at any eigenvalue between 0.95
        and 1.5 times the peak. Where no eigenvalue smaller than the largest lies there (possible
        only on a spectrum of more than 17 decades), it starts at the one nearest to the peak on
        the log scale.

        `xmin_peak_published`: the same with the lower bound that the released code has, where
        :math:`\lambda_i` itself is compared with :math:`\log_{10}(0.95 \cdot \text{peak})`. The
        result depends on the scale of the weights: for a peak below 1.05 there is no lower bound
        at all. For the reproduction of published numbers only.

        `hill`: the tail is the upper half, from index `N // 2` (TempBalance's `median`,
        AlphaPruning's `xmin_mid`; the PL_Alpha_Hill metric). Where the eigenvalue there equals
        the largest, the tail starts at the last one that does not.

        `ks`: the tail may start at any eigenvalue but the largest (Clauset et al. 2009, section
        3.3; TempBalance's `goodness-of-fit`). The definition of weightwatcher 0.7.7, whose
        `analyze` differs in two ways: it first drops eigenvalues up to 1e-5, whatever the
        scale, and below 20 eigenvalues it uses another formula.

        `weightwatcher`: the fit of the installed weightwatcher itself, see
        `fit_weightwatcher`.

    Args:
        eigenvalues: Positive finite eigenvalues, 1-D, in any order, of any real dtype, on any
            device. The fit is done in float64 on the CPU.
        method: One of `ESTIMATORS`.

    Returns:
        The fit with the smallest distance among the candidates.

    Raises:
        ValueError: If `method` is unknown, or if the eigenvalues are not 1-D, fewer than
            `MIN_EIGENVALUES`, not all positive and finite, or all equal to within 1e-10 of
            their size. For `weightwatcher` also where it gives no exponent.
        ImportError: If `weightwatcher` is chosen and not installed.
    """
    if method not in ESTIMATORS:
        raise ValueError(f"unknown estimator {method!r}: choose one of {', '.join(ESTIMATORS)}")
    _check(eigenvalues)
    values = eigenvalues.detach().cpu().to(torch.float64).sort().values
    return fit_ascending(values, method)


def fit_ascending(values: Tensor, method: str) -> PowerLawFit:
    """Fit as `fit_power_law` does, without its checks of the single eigenvalues.

    For many fits to values that have been checked once.

    Args:
        values: Positive finite eigenvalues in ascending order, float64, shape (N,), on the CPU.
        method: One of `ESTIMATORS`.

    Raises:
        ValueError: If there are fewer than `MIN_EIGENVALUES` or all are equal to within
            1e-10 of their size. For `weightwatcher` also where it gives no exponent.
        ImportError: If `weightwatcher` is chosen and not installed.
    """
    estimator, size = TABLE[method], len(values)
    if size < MIN_EIGENVALUES:
        raise ValueError(f"a power law needs at least {MIN_EIGENVALUES} eigenvalues, got {size}")
    logs = relative_logs(values)
    if logs[0] > -_EQUAL:
        raise ValueError(
            f"all {size} eigenvalues equal {float(values[-1]):.6g}: no power law fits them"
        )
    return estimator.fit(values, logs)


def _check(eigenvalues: Tensor) -> None:
    if eigenvalues.ndim != 1:
        raise ValueError(f"eigenvalues must be 1-D, not of shape {tuple(eigenvalues.shape)}")
    bad = int((~((eigenvalues > 0) & eigenvalues.isfinite())).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(eigenvalues)} eigenvalues are not positive finite numbers: "
            "drop zero and round-off eigenvalues before the fit"
        )


def fit_weightwatcher(eigenvalues: Tensor) -> PowerLawFit:
    """Fit a power law to eigenvalues with weightwatcher's own fitter.

    Args:
        eigenvalues: Non-negative eigenvalues, 1-D, in any order and of any real dtype. Those up to
            1e-5 do not take part.

    Returns:
        What weightwatcher answers; the tail size is its number of spikes.

    Raises:
        ImportError: If weightwatcher cannot be imported.
        ValueError: If weightwatcher gives no exponent above 1, with its answer.
    """
    module = _import()
    values = eigenvalues.detach().cpu().double().sort().values.numpy()
    with _quiet():
        answer = module.WeightWatcher().fit_powerlaw(values, plot=False)
    alpha, _, x_min, _, distance, _, tail_size, _, _, status, _ = answer
    return _checked(alpha, x_min, distance, tail_size, status)


def analyze_weightwatcher(weight: Tensor) -> PowerLawFit:
    """Run weightwatcher's default analysis on a model that holds just one matrix.

    Args:
        weight: The matrix, 2-D, of any floating dtype, in either orientation. weightwatcher reads
            it in single precision, and in half precision where CUDA is available.

    Returns:
        What weightwatcher answers; the tail size is its number of spikes.

    Raises:
        ImportError: If weightwatcher cannot be imported.
        ValueError: If the weight is not a non-empty matrix, if weightwatcher leaves it out because
            of its size (by default it takes 8 to 15000 eigenvalues and sides up to 50000), or if
            it gives no exponent above 1, with its answer.
    """
    if weight.ndim != 2 or weight.numel() == 0:
        raise ValueError(f"not a non-empty matrix but a tensor of shape {tuple(weight.shape)}")
    module = _import()
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    with _quiet():
        details = module.WeightWatcher(model=nn.Sequential(layer)).analyze()
    if len(details) == 0:
        raise ValueError(
            f"weightwatcher leaves out a {weight.shape[0]} x {weight.shape[1]} matrix: its default "
            "analysis takes 8 to 15000 eigenvalues and sides up to 50000"
        )
    row = details.iloc[0]
    return _checked(row["alpha"], row["xmin"], row["D"], row["num_pl_spikes"], row["status"])


def _checked(alpha: Any, x_min: Any, distance: Any, tail_size: Any, status: Any) -> PowerLawFit:
    if status != "success" or not (math.isfinite(alpha) and alpha > 1):
        raise ValueError(
            f"weightwatcher gives no exponent: it answers alpha {alpha:.6g}, status {status!r}"
        )
    return PowerLawFit(float(alpha), float(x_min), float(distance), int(tail_size))


def _import() -> ModuleType:
    try:
        with _quiet():
            import weightwatcher
    except ImportError as error:
        raise ImportError(
            f"weightwatcher cannot be imported ({error}); install it with "
            "`pip install weightwatcher`"
        ) from error
    return weightwatcher


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep weightwatcher's output, and what it sets up for the whole process, from the caller.

    Its import configures the root logger and switches warnings off; its fit prints.
    """
    root, own = logging.getLogger(), logging.getLogger("weightwatcher")
    level, handlers, disabled = root.level, list(root.handlers), own.disabled
    own.disabled = True
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        own.disabled = disabled
        root.setLevel(level)
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)


TABLE: dict[str, Estimator] = {
    "xmin_peak": Estimator(partial(fit_tail, candidates=near_peak)),
    "xmin_peak_published": Estimator(partial(fit_tail, candidates=near_peak_published)),
    "hill": Estimator(partial(fit_tail, candidates=upper_half)),
    "ks": Estimator(partial(fit_tail, candidates=anywhere)),
    "weightwatcher": Estimator(
        lambda values, logs: fit_weightwatcher(values), analyze_weightwatcher, "weightwatcher"
    ),
}
"""Name to estimator; the names are those of `ESTIMATORS`."""
