"""Layer quality of a model by itself: no configuration, no adapter, no training stack."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .blocks import Shapes, block_name, kind_of
from .settings import MatrixQuality, QualitySettings

if TYPE_CHECKING:
    from torch import nn

    from .progress import Progress
    from .spectral import Cache, Measurement, WeightSource


def analyze(
    model: str | os.PathLike[str] | nn.Module,
    *,
    estimator: str = "xmin_peak",
    window: str | int | None = None,
    aggregate: str = "mean",
    normalize: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: bool = False,
) -> Any:
    """Measure how well each weight matrix of a model is trained, by its spectrum.

    A power law is fitted to the upper end of the spectrum of every linear layer inside a numbered
    block. The smaller its exponent alpha, the heavier the tail and the better trained the matrix;
    a block's score is the mean of its matrices' alphas. Spectra are kept in the cache, so the same
    model is read once.

    Args:
        model: Directory, hub id, path of a `.gguf` file, or a live model, which is dequantised
            where it is quantised.
        estimator: Which eigenvalue starts the power law's tail: `xmin_peak`,
            `xmin_peak_published`, `hill`, `ks` or `weightwatcher`.
        window: Shape of windows whose eigenvalues are pooled, as `"128x128"` or a side, or
            `"auto"` for the largest square that fits all matrices; None takes matrices whole.
        aggregate: How a block's matrices make its score: `mean`, `median` or `parameters`.
        normalize: Whether alphas are first compared within their kind of projection.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: Whether the model's own code may run.
        progress: Whether to show a progress bar on stderr.

    Returns:
        One row for each matrix, in the model's order: a pandas `DataFrame` where pandas is
        installed, otherwise a list of dicts with the columns as keys. The columns are `module`,
        `block`, `kind` (what follows the block in the module's name), `rows` and `columns`
        of the stored weight, `alpha`, `x_min`, `distance` (Kolmogorov-Smirnov),
        `tail_size`, `standard_error`, `num_eigenvalues`, `numerical_rank`, `note` and
        `block_score`. `DataFrame.attrs` holds `description` (source, dtype, revision,
        quantization and digest of the weights), `settings`, and `trust`: the share of the
        variance between blocks that is more than the fits' errors, None but for `hill`, where
        only resampling can tell. `description["unmeasured"]` lists stacked expert weights,
        `description["left_out"]` what else is in the files and belongs to no layer of the model,
        and `description["further_blocks"]` blocks that transformers does not load, such as
        those that predict further tokens; each if there are any. A directory or hub model is
        measured whole: an encoder-decoder with its encoder, a multimodal one with its towers.

    Raises:
        ValueError: If an option is unknown, or the model or a weight cannot be read.
        ImportError: If weightwatcher is chosen and not installed.
    """
    settings = QualitySettings(
        estimator=estimator,
        window=window,  # type: ignore[arg-type]
        aggregate=aggregate,
        normalize=normalize,
    )
    with _bar(progress) as stage:
        found = measure_model(
            model,
            settings,
            revision=revision,
            trust_remote_code=trust_remote_code,
            progress=stage and stage("Reading spectra"),
        )
    rows = [_table_row(quality, found.scores) for quality in found.matrices]
    try:
        from pandas import DataFrame
    except ImportError:
        return rows
    from .spectral import unit_reliability

    table = DataFrame(rows, columns=list(rows[0]))
    table.attrs = {
        "description": dict(found.description),
        "settings": found.settings.as_options(),
        "trust": unit_reliability(found.settings, found.matrices, found.scores)
        if estimator == "hill"
        else None,
    }
    return table


def measure_model(
    model: str | os.PathLike[str] | nn.Module,
    settings: QualitySettings | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Measure every linear layer inside a numbered block of a model.

    Args:
        model: Directory, hub id, path of a `.gguf` file, or a live model.
        settings: How to measure; the defaults if None.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: Whether the model's own code may run.
        cache: Where spectra and layers are kept; the default cache if None.
        progress: Gets the names of the matrices; what it returns is called after each.

    Raises:
        ValueError: If the model has no such layer, or it or a weight cannot be read.
        ImportError: If weightwatcher is chosen and not installed.
    """
    from torch import nn

    from .spectral import BaseModel, LiveWeights, default_cache, measure

    cache = default_cache() if cache is None else cache
    weights: WeightSource
    if isinstance(model, nn.Module):
        shapes, weights = _live_layers(model), LiveWeights(model)
        unmeasured = list(_stacked_weights(model))
        _check_layers(shapes, type(model).__name__)
    else:
        name = os.fspath(model)
        name = str(Path(name).expanduser()) if name.startswith("~") else name
        base = BaseModel(name, revision, trust_remote_code, cache, whole=True)
        shapes = base.layers(_linear_layers, "linear layers")
        unmeasured = list(base.layers(_stacked_weights, "stacked weights"))
        _check_layers(shapes, name)
        weights = base.weights(shapes)
    step = progress(list(shapes)) if progress else None
    found = measure(weights, shapes, settings, cache=cache, progress=step)
    if not unmeasured:
        return found
    return replace(found, description={**found.description, "unmeasured": unmeasured})


def matrix_row(quality: MatrixQuality) -> dict[str, Any]:
    """Return what was measured of a matrix as plain JSON values, its standard error included."""
    row = {field.name: getattr(quality, field.name) for field in fields(quality)}
    return row | {"shape": list(quality.shape), "standard_error": quality.standard_error}


def _table_row(quality: MatrixQuality, scores: Mapping[str, float]) -> dict[str, Any]:
    block = block_name(quality.module)
    return {
        "module": quality.module,
        "block": block,
        "kind": kind_of(quality.module),
        "rows": quality.shape[0],
        "columns": quality.shape[1],
        "alpha": quality.alpha,
        "x_min": quality.x_min,
        "distance": quality.distance,
        "tail_size": quality.tail_size,
        "standard_error": quality.standard_error,
        "num_eigenvalues": quality.num_eigenvalues,
        "numerical_rank": quality.numerical_rank,
        "note": quality.note,
        "block_score": scores[block],
    }


def _linear_layers(model: nn.Module) -> Shapes:
    # Needs transformers, which the cache spares us the second time.
    from .spectral.definition import linear_layers

    return linear_layers(model)


def _stacked_weights(model: nn.Module) -> Shapes:
    from .spectral.definition import stacked_weights

    found = stacked_weights(model)
    return {name: (shape[0], math.prod(shape[1:])) for name, shape in found.items()}


def _live_layers(model: nn.Module) -> Shapes:
    """Return the linear layers of a live model; those that PEFT has wrapped under their own name.

    An adapter's own matrices are linear layers too, but not the model's.
    """
    from torch import nn

    layers = _linear_layers(model)
    wrapped = {
        name
        for name, module in model.named_modules()
        if isinstance(getattr(module, "base_layer", None), nn.Module)
    }
    found: dict[str, tuple[int, int]] = {}
    for name, shape in layers.items():
        parts = name.split(".")
        parents = {".".join(parts[:end]) for end in range(1, len(parts))}
        inside = parents & wrapped
        if not inside:
            found[name] = shape
        elif name.removesuffix(".base_layer") in inside:
            found[name.removesuffix(".base_layer")] = shape
    return found


def _check_layers(shapes: Shapes, model: str) -> None:
    if not shapes:
        raise ValueError(
            f"{model} has no linear layers inside numbered blocks (such as model.layers.0), so "
            "there is nothing to analyse"
        )


def _bar(wanted: bool) -> Any:
    if not wanted:
        return nullcontext()
    from rich.console import Console

    from .progress import working

    return working(Console(stderr=True))
