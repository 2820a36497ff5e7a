"""Making plans: from a checkpoint's files, or from a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union

from ..allocation import Evidence, Plan, build_plan, check_budget
from ..settings import QualitySettings
from ..spectral import (
    Cache,
    LiveWeights,
    Measurement,
    UnreadableCheckpoint,
    WeightSource,
    default_cache,
    measure,
    unit_intervals,
)
from .request import PlanRequest, base_model, layers

if TYPE_CHECKING:
    from torch import nn

    from ..sensitivity import Sensitivity

__all__ = [
    "Found",
    "Gradients",
    "ModelNeeded",
    "Progress",
    "WeightsNotReadable",
    "build",
    "measured_plan",
    "plan_from_files",
    "plan_from_model",
    "quality_evidence",
    "sensitivity_evidence",
]

Shapes = Mapping[str, tuple[int, int]]
Progress = Callable[[Sequence[str]], Callable[[str], None]]
"""Takes the names of the matrices to measure; what it returns is called after each."""
Gradients = Callable[[Sequence[str], Any], tuple["Sensitivity", Mapping[str, Any]]]
"""Takes the modules' names and the strategy's options; returns what it measured, and on what."""
Found = Union["Measurement", "Sensitivity", None]
"""What a plan rests on; None if nothing was measured."""


class ModelNeeded(ValueError):
    """The plan cannot be made from the base model's files; a loaded model can serve."""


class WeightsNotReadable(ModelNeeded):
    """The base model's weights cannot be read from its files."""


def measured_plan(
    request: PlanRequest,
    progress: Progress | None = None,
    *,
    load: bool = False,
    samples: int = 0,
    resampling: Progress | None = None,
    cache: Cache | None = None,
) -> tuple[Plan, Measurement | None]:
    """Plan from the checkpoint's files, one tensor at a time, without loading the model.

    Args:
        request: What to plan.
        progress: For the reading of spectra.
        load: Whether a quantised checkpoint may be loaded to be dequantised.
        samples: Resamples for the intervals of the units' scores; 0 leaves them out.
        resampling: For the resampling.
        cache: Where spectra and layers are kept; the default cache if None.

    Returns:
        The plan, and the measurement that it rests on, None for a strategy that needs none.

    Raises:
        WeightsNotReadable: If the files hold no plain weights for the targets.
        ModelNeeded: If the strategy goes by gradients.
        ValueError: If targets, strategy or budget do not fit the model.
    """
    base = base_model(request, cache)
    shapes = layers(request, base)
    check_budget(shapes, **_spending(request))
    if request.needs == "sensitivity":
        raise ModelNeeded(
            f"the strategy {request.strategy} goes by gradients, which take a loaded model and "
            "training data"
        )
    if request.needs == "nothing":
        if samples:
            raise ValueError(
                f"the strategy {request.strategy} measures nothing that could be resampled: leave "
                "out --confidence"
            )
        return build(request, shapes, Evidence()), None
    try:
        found = _measure(request, base.weights(shapes, load), shapes, progress, base.cache)
    except UnreadableCheckpoint as error:
        raise WeightsNotReadable(str(error)) from error
    intervals = {}
    if samples:
        step = resampling(list(shapes)) if resampling else None
        intervals = unit_intervals(found, samples, progress=step)
    return build(request, shapes, quality_evidence(found, intervals), found), found


def plan_from_files(request: PlanRequest, progress: Progress | None = None) -> Plan:
    """Plan as :func:`measured_plan` does, where a quantised checkpoint will be loaded anyway.

    Raises:
        ModelNeeded: If the files hold no plain weights for the targets, or the strategy goes by
            gradients.
        ValueError: If targets, strategy or budget do not fit the model.
    """
    return measured_plan(request, progress)[0]


def plan_from_model(
    request: PlanRequest,
    model: nn.Module,
    progress: Progress | None = None,
    gradients: Gradients | None = None,
    cache: Cache | None = None,
) -> tuple[Plan, Found]:
    """Plan from a loaded model, dequantised where it is quantised; before its first forward.

    Args:
        request: What to plan.
        model: The model, without an adapter.
        progress: For the reading of spectra.
        gradients: Measures sensitivities, for a strategy that needs them.
        cache: Where spectra are kept; the default cache if None.

    Returns:
        The plan, and what it rests on.

    Raises:
        ValueError: If targets, strategy or budget do not fit the model.
    """
    shapes = request.targets.resolve(model)
    check_budget(shapes, **_spending(request))
    if request.needs == "sensitivity":
        assert gradients is not None
        live = LiveWeights(model)
        live.tensor(next(iter(shapes)))
        sensitivity, sample = gradients(list(shapes), request.settings)
        evidence = sensitivity_evidence(sensitivity, live.description, sample)
        return build(request, shapes, evidence), sensitivity
    if request.needs == "nothing":
        return build(request, shapes, Evidence()), None
    cache = default_cache() if cache is None else cache
    found = _measure(request, LiveWeights(model), shapes, progress, cache)
    return build(request, shapes, quality_evidence(found), found), found


def build(
    request: PlanRequest,
    shapes: Shapes,
    evidence: Evidence,
    measured: Measurement | None = None,
) -> Plan:
    """Let the request's strategy decide on evidence that is there.

    Args:
        request: What to plan.
        shapes: The target layers.
        evidence: What was measured.
        measured: Where the evidence is from; its settings, such as a window that was ``auto``, are
            recorded as they were used.
    """
    arguments = request.building
    if measured is not None:
        options = type(request.settings).model_fields
        used = measured.settings.as_options()
        known = {name: value for name, value in used.items() if name in options}
        arguments["options"] = {**request.options, **known}
    return build_plan(shapes=shapes, evidence=evidence, **arguments)


def _measure(
    request: PlanRequest,
    weights: WeightSource,
    shapes: Shapes,
    progress: Progress | None,
    cache: Cache,
) -> Measurement:
    step = progress(list(shapes)) if progress else None
    settings = QualitySettings.from_options(request.settings.model_dump())
    return measure(
        weights, shapes, settings, granularity=request.granularity, cache=cache, progress=step
    )


def quality_evidence(
    found: Measurement, intervals: Mapping[str, tuple[float, float]] | None = None
) -> Evidence:
    """Return a measurement of spectra as a strategy gets it."""
    return Evidence(
        weights=found.description,
        alphas=found.scores,
        qualities=found.matrices,
        intervals=intervals or {},
    )


def sensitivity_evidence(
    found: Sensitivity, weights: Mapping[str, Any], sample: Mapping[str, Any]
) -> Evidence:
    """Return a measurement of gradients as a strategy gets it.

    Args:
        found: What was measured.
        weights: What the plan records about the model's weights.
        sample: What the plan records about the samples.
    """
    return Evidence(weights=weights, sensitivities=found.by_task(), sample=sample)


def _spending(request: PlanRequest) -> dict[str, Any]:
    keys = ("strategy", "options", "budget", "rank", "spend", "optimizer")
    return {key: value for key, value in request.building.items() if key in keys}
