"""From the exponents of matrices to the scores of decoder blocks, or of finer units."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev

from ..blocks import group_by_unit, kind_of, stack_of
from ..settings import AGGREGATES, MatrixQuality

_SMALLEST_ALPHA = 1.0
_EQUAL = 1e-12


def unit_scores(
    qualities: Iterable[MatrixQuality],
    aggregate: str = "mean",
    normalize: bool = False,
    granularity: str = "block",
) -> dict[str, float]:
    """Return each unit's score from its matrices' exponents; a unit is a decoder block, or finer.

    The kind of a matrix is what follows the block's name in its module's name, such as
    ``self_attn.q_proj``. Kinds differ more in alpha than blocks do, so units compare only over
    the same kinds, which decides the rules for a matrix without an exponent:

    - it counts with the mean exponent of its kind over the other blocks;
    - where no matrix of its kind has an exponent, the kind is left out of every unit;
    - a unit in which nothing is left gets the mean of the other units' scores.

    Args:
        qualities: Measured matrices, in any order.
        aggregate: ``mean`` (AlphaLoRA's), ``median``, or ``parameters``: the mean weighted with
            the matrices' numbers of entries.
        normalize: Take the differences between kinds away first. Each exponent is expressed in
            standard deviations from the mean of its kind (zero where the kind has one matrix or
            no spread), then mapped back with the mean of the kinds' means and the mean of their
            standard deviations. An exponent that would fall below 1 becomes 1, as none is
            smaller.
        granularity: How finely units divide the model, see
            :func:`~axolotl_alphalora.blocks.group_by_unit`.

    Returns:
        Unit name to score, blocks in natural order.

    Raises:
        ValueError: If ``aggregate`` is unknown or no matrix has an exponent.
    """
    rows = _counted(qualities, aggregate, normalize, granularity)
    scores = {
        unit: _AGGREGATES[aggregate]([row.alpha for row in members], [row.size for row in members])
        for unit, members in rows.items()
        if members
    }
    others = fmean(scores.values())
    return {unit: scores.get(unit, others) for unit in rows}


def unit_errors(
    qualities: Iterable[MatrixQuality],
    errors: Mapping[str, float],
    aggregate: str = "mean",
    normalize: bool = False,
    granularity: str = "block",
) -> dict[str, float]:
    """Return the standard error of each unit's score from those of its matrices' exponents.

    Errors of different matrices are taken as independent: with weights w the error of a weighted
    mean is ``sqrt(sum(w**2 * error**2)) / sum(w)``. The median has that of the mean, which is a
    little too small. With ``normalize`` each error is scaled as its exponent is.

    A matrix without an error counts with the root mean square of its kind's errors, and where its
    kind has none it is left out, as is a kind without exponents. A unit in which nothing is left
    gets the root mean square of the other units' errors.

    Args:
        qualities: Measured matrices, in any order.
        errors: Module name to the standard error of its exponent.
        aggregate: As for :func:`unit_scores`.
        normalize: As for :func:`unit_scores`.
        granularity: As for :func:`unit_scores`.

    Returns:
        Unit name to standard error, blocks in natural order.

    Raises:
        ValueError: If ``aggregate`` is unknown, no matrix has an exponent, or none that has one
            has an error or shares its kind with one that has.
    """
    rows = _counted(qualities, aggregate, normalize, granularity)
    known: dict[str, list[float]] = {}
    for row in (row for members in rows.values() for row in members if row.module in errors):
        known.setdefault(row.kind, []).append(errors[row.module])
    typical = {kind: _root_mean_square(values) for kind, values in known.items()}
    found = {}
    for unit, members in rows.items():
        left = [row for row in members if row.kind in typical]
        if left:
            weights = [row.size if aggregate == "parameters" else 1 for row in left]
            parts = (
                weight * row.scale * errors.get(row.module, typical[row.kind])
                for row, weight in zip(left, weights, strict=True)
            )
            found[unit] = math.hypot(*parts) / sum(weights)
    if not found:
        raise ValueError("no matrix has a standard error")
    others = _root_mean_square(found.values())
    return {unit: found.get(unit, others) for unit in rows}


@dataclass(frozen=True)
class _Row:
    """A matrix as it counts; ``scale`` is how much of its exponent's error that keeps."""

    module: str
    kind: str
    alpha: float
    scale: float
    size: int


def _counted(
    qualities: Iterable[MatrixQuality], aggregate: str, normalize: bool, granularity: str
) -> dict[str, list[_Row]]:
    """Return the matrices that count in every unit, blocks in natural order, some empty."""
    if aggregate not in _AGGREGATES:
        raise ValueError(f"unknown aggregate {aggregate!r}: choose one of {', '.join(AGGREGATES)}")
    matrices = {quality.module: quality for quality in qualities}
    alphas: dict[str, list[float]] = {}
    for name, quality in matrices.items():
        if quality.alpha is not None:
            alphas.setdefault(_kind(name), []).append(quality.alpha)
    if not alphas:
        raise ValueError("no matrix has a power-law exponent")
    means = {kind: fmean(values) for kind, values in alphas.items()}
    spreads = {kind: pstdev(values) for kind, values in alphas.items()}
    centre, spread = fmean(means.values()), fmean(spreads.values())

    def row(name: str, kind: str) -> _Row:
        quality = matrices[name]
        alpha, scale = means[kind] if quality.alpha is None else quality.alpha, 1.0
        if normalize:
            flat = spreads[kind] <= _EQUAL * means[kind]
            scale = 0.0 if flat else spread / spreads[kind]
            alpha = max(_SMALLEST_ALPHA, centre + (alpha - means[kind]) * scale)
        return _Row(name, kind, alpha, scale, math.prod(quality.shape))

    return {
        unit: [row(name, _kind(name)) for name in names if _kind(name) in means]
        for unit, names in group_by_unit(matrices, granularity).items()
    }


def _kind(module: str) -> str:
    return f"{stack_of(module)} {kind_of(module)}"


def _root_mean_square(values: Iterable[float]) -> float:
    return math.sqrt(fmean(value**2 for value in values))


_AGGREGATES: dict[str, Callable[[Sequence[float], Sequence[int]], float]] = {
    "mean": lambda alphas, sizes: fmean(alphas),
    "median": lambda alphas, sizes: median(alphas),
    "parameters": fmean,
}
