"""Training quality of weight matrices, read from their spectra."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..settings import MatrixQuality
from .files import UnreadableCheckpoint
from .power_law import (
    MIN_EIGENVALUES,
    PowerLawFit,
    fit_power_law,
)
from .reading import Spectra
from .spectrum import pool
from .threads import one_thread

FEW_EIGENVALUES = 20
"""An alpha from fewer eigenvalues than this is noted as weak."""


SPREAD = 1.05
"""A spectrum has no tail if its largest eigenvalue is not above this times its smallest."""


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
