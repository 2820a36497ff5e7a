"""Layer quality of a model: from weights to alphas and the scores of blocks, or finer units."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..settings import MatrixQuality, QualitySettings
from ..threads import one_thread
from .cache import Cache
from .estimators import MIN_EIGENVALUES, TABLE, fit_power_law
from .live import WeightSource
from .model_files import UnreadableCheckpoint
from .power_law import PowerLawFit
from .reading import Spectra, read_spectra
from .scores import (
    FEW_EIGENVALUES,
    bootstrap_alphas,
    interval,
    reliability,
    unit_errors,
    unit_scores,
)
from .spectrum import default_window, pool

SPREAD = 1.05
"""A spectrum has no tail if its largest eigenvalue is not above this times its smallest."""


def assess(
    spectra: Spectra,
    estimator: str = "xmin_peak",
    fit: Callable[[str, Tensor], PowerLawFit] | None = None,
) -> list[MatrixQuality]:
    """Fit a power law to every spectrum.

    Zero and round-off eigenvalues never take part. A matrix that is left with fewer than
    `MIN_EIGENVALUES` eigenvalues, or with ones that
    are equal to within a factor of `SPREAD` (an orthogonal matrix, rounded), has no alpha;
    its note says so, and so do the notes of rank-deficient matrices and of those with fewer than
    `FEW_EIGENVALUES` eigenvalues, whose alphas are shown.

    Args:
        spectra: The spectra.
        estimator: Name of the estimator.
        fit: Takes a module's name and its significant eigenvalues instead of
            `fit_power_law` with the estimator.

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


_NORMAL_95 = 1.96


@dataclass(frozen=True)
class Measurement:
    """The quality of a model's matrices, and of its blocks or finer units.

    Attributes:
        settings: How it was measured; the window is the one that was used.
        matrices: One row for each matrix.
        scores: Unit name to score.
        spectra: What the fits rest on.
        description: What the source of the weights says about itself, and a digest of them.
        granularity: How finely units divide the model, see
            `group_by_unit`.
    """

    settings: QualitySettings
    matrices: tuple[MatrixQuality, ...]
    scores: dict[str, float]
    spectra: Spectra
    description: dict[str, Any]
    granularity: str = "block"


def measure(
    weights: WeightSource,
    shapes: Mapping[str, tuple[int, int]],
    settings: QualitySettings | None = None,
    *,
    granularity: str = "block",
    cache: Cache | None = None,
    progress: Callable[[str], None] | None = None,
) -> Measurement:
    """Measure the quality of a model's matrices, and of its blocks or finer units.

    Args:
        weights: Where the weights come from.
        shapes: Module name to (output features, input features) of the layers to measure.
        settings: How to measure; the defaults if None.
        granularity: How finely units divide the model, see
            `group_by_unit`.
        cache: Where spectra are kept; None keeps none.
        progress: Called with a module's name when its spectrum is there.

    Raises:
        ValueError: If a weight cannot be read or holds NaN or infinity (names tensor and file), a
            window does not fit into a matrix, or no matrix at all has an alpha.
    """
    settings = settings or QualitySettings()
    cache = cache or Cache(None)
    window = settings.window_shape()
    if window == "auto":
        window = default_window(shapes, FEW_EIGENVALUES)
        settings = replace(settings, window=f"{window[0]}x{window[1]}")
    assert not isinstance(window, str)
    try:
        spectra = read_spectra(weights, shapes, window, cache=cache, progress=progress)
        fit = None
        estimator = TABLE[settings.estimator]
        if estimator.of_matrix is not None and window is None:
            fit = _on_the_matrix(settings.estimator, weights, spectra, cache)
        matrices = assess(spectra, settings.estimator, fit)
    finally:
        weights.close()
    if all(row.alpha is None for row in matrices):
        first = matrices[0]
        raise ValueError(
            f"none of the {len(matrices)} matrices has an alpha; the first, "
            f"{weights.location(first.module)}: {first.note}"
        )
    scores = unit_scores(matrices, settings.aggregate, settings.normalize, granularity)
    described = {**weights.description, "digest": spectra.digest}
    return Measurement(settings, tuple(matrices), scores, spectra, described, granularity)


def resampled_scores(
    measurement: Measurement,
    samples: int = 100,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, float]]:
    """Return every unit's score for each of several resamples of all spectra.

    Every matrix is refitted to resampled eigenvalues, or to resampled windows where there are
    several; each resample of all matrices gives one score for every unit.

    Args:
        measurement: What was measured.
        samples: Number of resamples.
        seed: Seed of the resampling.
        progress: Called with a module's name when it is resampled.

    Raises:
        ValueError: For an estimator that analyses matrices.
    """
    settings, spectra = measurement.settings, measurement.spectra
    if TABLE[settings.estimator].of_matrix is not None:
        raise ValueError(
            f"{settings.estimator} analyses matrices, not resampled spectra: use the estimator ks, "
            "which gives the same alphas"
        )
    drawn: dict[str, list[float]] = {}
    for position, matrix in enumerate(measurement.matrices):
        name = matrix.module
        if matrix.alpha is not None:
            window = spectra.window or spectra.shapes[name]
            with one_thread():
                alphas = bootstrap_alphas(
                    spectra.values[name], window, settings.estimator, samples, seed + position
                )
            drawn[name] = alphas.tolist()
        if progress is not None:
            progress(name)
    return [
        unit_scores(
            [
                replace(matrix, alpha=drawn[matrix.module][sample])
                if matrix.module in drawn
                else matrix
                for matrix in measurement.matrices
            ],
            settings.aggregate,
            settings.normalize,
            measurement.granularity,
        )
        for sample in range(samples)
    ]


def unit_intervals(
    measurement: Measurement,
    samples: int = 100,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, tuple[float, float]]:
    """Return where 95 % of each unit's score lies, by `resampled_scores` of the same."""
    found = resampled_scores(measurement, samples, seed, progress)
    return {
        unit: interval(torch.tensor([scores[unit] for scores in found], dtype=torch.float64))
        for unit in measurement.scores
    }


def unit_reliability(
    settings: QualitySettings,
    matrices: Iterable[MatrixQuality],
    scores: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]] | None = None,
    granularity: str = "block",
) -> float:
    """Return the share of the differences between units that is not noise of the fits.

    Args:
        settings: How it was measured.
        matrices: The measured matrices.
        scores: Unit name to score.
        intervals: Unit name to the interval of its score, see `unit_intervals`. Without,
            the fits' asymptotic standard errors are taken, as if eigenvalues were independent.
        granularity: How finely units divide the model.

    Returns:
        Between 0 and 1, see `reliability`; below 0.5
        the ranking rests on noise. NaN for fewer than two units.
    """
    if intervals:
        errors = {unit: (high - low) / (2 * _NORMAL_95) for unit, (low, high) in intervals.items()}
    else:
        rows = list(matrices)
        known = {row.module: row.standard_error for row in rows}
        errors = unit_errors(
            rows,
            {name: error for name, error in known.items() if error is not None},
            settings.aggregate,
            settings.normalize,
            granularity,
        )
    return reliability(scores.values(), [errors[unit] for unit in scores])


def _on_the_matrix(
    name: str, weights: WeightSource, spectra: Spectra, cache: Cache
) -> Callable[[str, Tensor], PowerLawFit]:
    """Let an estimator analyse each weight itself, and keep what it says."""
    estimator = TABLE[name]
    analyse, package = estimator.of_matrix, estimator.package
    assert analyse is not None and package is not None
    try:
        release = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        release = "none"  # the analysis says what to install

    def fit(module: str, eigenvalues: Tensor) -> PowerLawFit:
        key = f"{spectra.fingerprints[module]} {release}"
        known = cache.get(name, key)
        if known is None:
            known = asdict(analyse(weights.tensor(module)))
            cache.put(name, key, known)
        return PowerLawFit(**known)

    return fit
