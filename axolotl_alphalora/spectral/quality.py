"""Training quality of weight matrices and decoder blocks, read from their spectra."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from axolotl_alphalora.blocks import group_by_block
from axolotl_alphalora.spectral.power_law import fit_power_law
from axolotl_alphalora.spectral.spectrum import significant, spectrum
from axolotl_alphalora.spectral.weights import WeightSource

__all__ = ["MatrixQuality", "block_scores", "measure"]


@dataclass(frozen=True)
class MatrixQuality:
    """What the spectrum of one weight matrix says.

    Attributes:
        module: Name of the module that owns the weight.
        shape: Shape of the weight as it is stored (a ``Conv1D`` stores input features first).
        alpha: Power-law exponent of the spectrum's upper end; the lower, the heavier the tail and
            the better trained the matrix.
        x_min: Eigenvalue at which the fitted tail starts.
        distance: Kolmogorov-Smirnov distance of the fit.
        tail_size: Number of eigenvalues in the tail.
        num_eigenvalues: Number of eigenvalues, the smaller side of the matrix.
        numerical_rank: Number of them above round-off; only these take part in the fit. Where it
            is smaller than ``num_eigenvalues`` the matrix is rank-deficient and its alpha rests on
            less than a full spectrum.
    """

    module: str
    shape: tuple[int, int]
    alpha: float
    x_min: float
    distance: float
    tail_size: int
    num_eigenvalues: int
    numerical_rank: int


def measure(
    weights: WeightSource,
    module_names: Sequence[str],
    method: str = "xmin_peak",
    progress: Callable[[str], None] | None = None,
) -> list[MatrixQuality]:
    """Measure weight matrices, holding one of them in memory at a time.

    Args:
        weights: Where the weights come from.
        module_names: The modules to measure.
        method: Name of the estimator, see
            :data:`~axolotl_alphalora.spectral.power_law.ESTIMATORS`.
        progress: Called with a module's name after it is measured.

    Returns:
        One row for each module, in the order of ``module_names``.

    Raises:
        ValueError: If a weight cannot be read, is not a matrix, holds NaN or infinity, or has a
            spectrum that no power law can be fitted to. The message names the tensor and its file.
    """
    qualities = []
    for name in module_names:
        weight = weights.tensor(name)
        try:
            eigenvalues = spectrum(weight)
            kept = significant(eigenvalues, (weight.shape[0], weight.shape[1]))
            fit = fit_power_law(kept, method)
        except ValueError as error:
            raise ValueError(f"{weights.location(name)}: {error}") from error
        qualities.append(
            MatrixQuality(
                module=name,
                shape=(weight.shape[0], weight.shape[1]),
                alpha=fit.alpha,
                x_min=fit.x_min,
                distance=fit.distance,
                tail_size=fit.tail_size,
                num_eigenvalues=len(eigenvalues),
                numerical_rank=len(kept),
            )
        )
        if progress is not None:
            progress(name)
    return qualities


def block_scores(qualities: Iterable[MatrixQuality]) -> dict[str, float]:
    """Return each decoder block's score: the plain mean of its matrices' alphas.

    Kinds of projection differ more in alpha than blocks do, so scores compare only between blocks
    in which the same projections were measured.

    Args:
        qualities: Measured matrices, in any order.

    Returns:
        Block name to score, blocks in natural order.
    """
    alphas = {quality.module: quality.alpha for quality in qualities}
    return {
        block: fmean(alphas[name] for name in names)
        for block, names in group_by_block(alphas).items()
    }
