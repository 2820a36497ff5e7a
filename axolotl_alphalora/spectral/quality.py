"""Training quality of weight matrices, read from their spectra."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .files import UnreadableCheckpoint
from .power_law import (
    MIN_EIGENVALUES,
    PowerLawFit,
    fit_power_law,
)
from .reading import Spectra
from .spectrum import pool
from .threads import one_thread

__all__ = ["FEW_EIGENVALUES", "SPREAD", "MatrixQuality", "assess"]

FEW_EIGENVALUES = 20
"""An alpha from fewer eigenvalues than this is noted as weak."""


SPREAD = 1.05
"""A spectrum has no tail if its largest eigenvalue is not above this times its smallest."""


@dataclass(frozen=True)
class MatrixQuality:
    """What the spectrum of one weight matrix says.

    Attributes:
        module: Name of the module that owns the weight.
        shape: Shape of the weight as it is stored (a ``Conv1D`` stores input features first).
        alpha: Power-law exponent of the spectrum's upper end; the lower, the heavier the tail and
            the better trained the matrix. None where no power law can be fitted; so for the next
            three.
        x_min: Eigenvalue at which the fitted tail starts.
        distance: Kolmogorov-Smirnov distance of the fit.
        tail_size: Number of eigenvalues in the tail.
        num_eigenvalues: Number of eigenvalues: the smaller side of the matrix, or of all its
            windows together.
        numerical_rank: Number of them above round-off; only these take part in the fit.
        note: What is out of the ordinary, in words, or None: no power law and why, a
            rank-deficient matrix, few eigenvalues.
    """

    module: str
    shape: tuple[int, int]
    alpha: float | None
    x_min: float | None
    distance: float | None
    tail_size: int | None
    num_eigenvalues: int
    numerical_rank: int
    note: str | None = None

    @property
    def standard_error(self) -> float | None:
        """The fit's asymptotic standard error, (alpha - 1) / sqrt(tail size)."""
        if self.alpha is None or self.tail_size is None:
            return None
        return (self.alpha - 1) / self.tail_size**0.5


def assess(
    spectra: Spectra,
    estimator: str = "xmin_peak",
    fit: Callable[[str, Tensor], PowerLawFit] | None = None,
) -> list[MatrixQuality]:
    """Fit a power law to every spectrum.

    Zero and round-off eigenvalues never take part. A matrix that is left with fewer than
    :data:`~axolotl_alphalora.spectral.power_law.MIN_EIGENVALUES` eigenvalues, or with ones that are
    equal to within a factor of :data:`SPREAD` (an orthogonal matrix, rounded), has no alpha; its
    note says so, and so do the notes of rank-deficient matrices and of
    those with fewer than :data:`FEW_EIGENVALUES` eigenvalues, whose alphas stand.

    Args:
        spectra: The spectra.
        estimator: Name of the estimator.
        fit: Takes a module's name and its significant eigenvalues instead of
            :func:`~axolotl_alphalora.spectral.power_law.fit_power_law` with the estimator.

    Returns:
        One row for each spectrum, in their order.
    """
    fit = fit or (lambda name, eigenvalues: fit_power_law(eigenvalues, estimator))
    with one_thread():
        return [_assess(spectra, name, fit) for name in spectra.values]


def _assess(
    spectra: Spectra, name: str, fit: Callable[[str, Tensor], PowerLawFit]
) -> MatrixQuality:
    values = spectra.values[name]
    shape = spectra.shapes[name]
    kept = pool(values, spectra.window or shape)
    rank, number = len(kept), values.numel()
    fitted, notes = None, []
    if rank == 0:
        notes.append("all zero")
    elif rank < number:
        notes.append(f"rank {rank} of {number}")
    if MIN_EIGENVALUES <= rank < FEW_EIGENVALUES:
        notes.append("few eigenvalues")
    if rank >= MIN_EIGENVALUES and kept.max() <= SPREAD * kept.min():
        notes.append(
            f"no power law: all {rank} eigenvalues equal {float(kept.max()):.6g} to within "
            f"{SPREAD - 1:.0%}"
        )
    else:
        try:
            fitted = fit(name, kept) if rank else None
        except UnreadableCheckpoint:
            raise
        except ValueError as error:
            notes.append(f"no power law: {error}")
    return MatrixQuality(
        module=name,
        shape=shape,
        alpha=fitted.alpha if fitted else None,
        x_min=fitted.x_min if fitted else None,
        distance=fitted.distance if fitted else None,
        tail_size=fitted.tail_size if fitted else None,
        num_eigenvalues=number,
        numerical_rank=rank,
        note="; ".join(notes) or None,
    )
