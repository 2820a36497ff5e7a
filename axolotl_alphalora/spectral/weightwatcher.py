"""Power-law exponents as the installed weightwatcher gives them.

Written against weightwatcher 0.7.7, which is optional and imported on first use. Its exponent is
that of ``ks`` with two differences, both its own: eigenvalues up to 1e-5 are dropped whatever the
scale of the weights, and a fit to fewer than 20 eigenvalues corrects the exponent for bias and
uses tails of at least 8.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from .power_law import PowerLawFit

__all__ = ["analyze_weightwatcher", "fit_weightwatcher"]


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
