"""Making plans: from a checkpoint's files, from a loaded model, or for a command's source.

Knows nothing of the host: who has one hands in how to plan from the model that it loads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Union, cast

from ..allocation import SAMPLED, Evidence, Plan, build_plan, check_budget, components_needed
from ..blocks import Shapes
from ..progress import Progress, working
from ..settings import QualitySettings
from .request import PlanRequest, base_model, layers
from .saved_plan import check_plan
from .source import Source, check_estimator

if TYPE_CHECKING:
    from torch import nn

    from ..activations import ExplainedVariance
    from ..sensitivity import Sensitivity
    from ..spectral import Cache, Measurement, WeightSource

OfSamples = Union["Sensitivity", "ExplainedVariance"]
MeasureSamples = Callable[["PlanRequest", Shapes], tuple[OfSamples, Mapping[str, Any]]]
"""Takes what to plan and the target layers; returns what it measured, and on what."""
Measured = Union["Measurement", OfSamples, None]
"""What a plan rests on; None if nothing was measured."""


class ModelNeeded(ValueError):
    """The plan cannot be made from the base model's files; a loaded model can serve."""


class WeightsNotReadable(ModelNeeded):
    """The base model's weights cannot be read from its files."""


def plan_from_files(
    request: PlanRequest,
    progress: Progress | None = None,
    *,
    load: bool = False,
    samples: int = 0,
    resampling: Progress | None = None,
) -> tuple[Plan, Measurement | None]:
    """Plan from the checkpoint's files, one tensor at a time, without loading the model.

    Args:
        request: What to plan.
        progress: For the reading of spectra.
        load: Whether a quantised checkpoint may be loaded to be dequantised.
        samples: Resamples for the intervals of the units' scores; 0 leaves them out.
        resampling: For the resampling.

    Returns:
        The plan, and the measurement that it rests on, None for a strategy that needs none.

    Raises:
        WeightsNotReadable: If the files hold no plain weights for the targets.
        ModelNeeded: If the strategy goes by what a model does with training data.
        ValueError: If targets, strategy or budget do not fit the model.
    """
    base = base_model(request)
    shapes = layers(request, base)
    check_budget(request, shapes)
    if request.needs in SAMPLED:
        raise ModelNeeded(
            f"the strategy {request.strategy} goes by {SAMPLED[request.needs]}, which take a "
            "loaded model and training data"
        )
    if request.needs == "nothing":
        return build_plan(request, shapes), None
    from ..spectral import UnreadableCheckpoint, unit_intervals

    try:
        measured = _measure(request, base.weights(shapes, load), shapes, progress, base.cache)
    except UnreadableCheckpoint as error:
        raise WeightsNotReadable(str(error)) from error
    intervals = {}
    if samples:
        step = resampling(list(shapes)) if resampling else None
        intervals = unit_intervals(measured, samples, progress=step)
    return plan_from_spectra(request, shapes, measured, intervals=intervals), measured


def plan_from_model(
    request: PlanRequest,
    model: nn.Module,
    progress: Progress | None = None,
    samples: MeasureSamples | None = None,
) -> tuple[Plan, Measured]:
    """Plan from a loaded model, dequantised where it is quantised; before its first forward.

    Args:
        request: What to plan.
        model: The model, without an adapter.
        progress: For the reading of spectra.
        samples: Measures on training samples, for a strategy that needs it.

    Returns:
        The plan, and what it rests on.

    Raises:
        ValueError: If targets, strategy or budget do not fit the model.
    """
    from ..spectral import LiveWeights, default_cache

    shapes = request.targets.resolve(model)
    check_budget(request, shapes)
    if request.needs == "nothing":
        return build_plan(request, shapes), None
    live = LiveWeights(model)
    if request.needs in SAMPLED:
        assert samples is not None
        live.tensor(next(iter(shapes)))
        found, sample = samples(request, shapes)
        return plan_from_samples(request, shapes, found, live.description, sample), found
    measured = _measure(request, live, shapes, progress, default_cache())
    return plan_from_spectra(request, shapes, measured), measured


def plan_from_samples(
    request: PlanRequest,
    shapes: Shapes,
    measured: OfSamples,
    weights: Mapping[str, Any],
    sample: Mapping[str, Any] | None,
) -> Plan:
    """Let the request's strategy decide on what was measured on training samples.

    Args:
        request: What to plan.
        shapes: The target layers.
        measured: What was measured.
        weights: What the source of the weights says about itself.
        sample: What was measured on.
    """
    from ..sensitivity import Sensitivity

    if isinstance(measured, Sensitivity):
        evidence = Evidence(weights, sensitivities=measured.by_task(), sample=sample)
    else:
        explained = measured.by_expert(request.rank)
        evidence = Evidence(weights, explained_variances=explained, sample=sample)
    return build_plan(request, shapes, evidence)


def plan_from_spectra(
    request: PlanRequest,
    shapes: Shapes,
    measured: Measurement,
    *,
    scores: Mapping[str, float] | None = None,
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> Plan:
    """Let the request's strategy decide on spectra.

    Args:
        request: What to plan.
        shapes: The target layers.
        measured: The spectra's fits. Their settings, such as a window that was `auto`, are
            recorded as they were used.
        scores: Unit name to alpha, to be used instead of the measured ones.
        intervals: Unit name to the interval of its alpha.
    """
    options = type(request.settings).model_fields
    used = {key: value for key, value in measured.settings.as_options().items() if key in options}
    evidence = Evidence(
        weights=measured.description,
        alphas=measured.scores if scores is None else scores,
        qualities=measured.matrices,
        intervals=intervals or {},
    )
    return build_plan(replace(request, options={**request.options, **used}), shapes, evidence)


class Planner:
    """Makes the plans of a command; a sample is measured once.

    Args:
        from_host: Loads the run's own model, once, and plans from it and its training data; None
            where there is no configuration that names data.
        console: A rich console for the progress bars; None shows none.

    Attributes:
        console: The same.
    """

    def __init__(
        self,
        from_host: Callable[[PlanRequest], tuple[Plan, Measured]] | None = None,
        console: Any = None,
    ) -> None:
        self._from_host = from_host
        self.console = console
        self._known: dict[tuple[Any, ...], tuple[Plan, OfSamples]] = {}

    def check(self, request: PlanRequest, samples: int = 0) -> None:
        """Check that a plan can be made here, before anything is measured.

        Args:
            request: What to plan.
            samples: Resamples of the spectra that are wanted.

        Raises:
            ValueError: If options are wrong, there is nothing to resample, or training data is
                needed and there is no YAML that names it.
            ImportError: If the estimator needs a package that is not installed.
        """
        check_estimator(getattr(request.settings, "estimator", ""), samples)
        if samples and request.needs != "quality":
            raise ValueError(
                f"the strategy {request.strategy} goes by no spectra that could be resampled: "
                "leave out --confidence"
            )
        if request.needs in SAMPLED and self._from_host is None:
            raise ValueError(
                f"the strategy {request.strategy} goes by {SAMPLED[request.needs]} on the run's "
                "training data: give an Axolotl YAML with `datasets`, not a bare model"
            )

    def plan(self, request: PlanRequest, samples: int = 0) -> tuple[Plan, Measured]:
        """Make a plan.

        Args:
            request: What to plan.
            samples: Resamples for the intervals of the units' alphas; 0 leaves them out.

        Returns:
            The plan, and what was measured for it.

        Raises:
            ValueError: If the configuration, the model's files or the budget do not fit.
        """
        self.check(request, samples)
        if request.needs in SAMPLED:
            return self._from_samples(request)
        with working(self.console) as task:
            return plan_from_files(
                request,
                task("Reading spectra"),
                load=True,
                samples=samples,
                resampling=task("Resampling"),
            )

    def settled(self, source: Source, samples: int = 0) -> tuple[Plan, Measured]:
        """Take the saved plan that a source names, or make its plan.

        Raises:
            ValueError: If the saved plan is for another model or other settings; otherwise as
                `plan`.
        """
        if source.saved is None:
            return self.plan(source.request, samples)
        path, plan = source.saved
        if samples:
            raise ValueError(
                f"--confidence makes a new plan, but the YAML names the saved plan {path}: "
                "remove `alphalora.plan`"
            )
        check_plan(plan, source.request)
        return plan, None

    def _from_samples(self, request: PlanRequest) -> tuple[Plan, OfSamples]:
        key: tuple[Any, ...] = (request.needs, *request.drawing)
        if request.needs == "activations":
            key += (components_needed(request, layers(request, base_model(request))),)
        if key in self._known:
            known, measured = self._known[key]
            plan = plan_from_samples(request, known.shapes, measured, known.weights, known.sample)
            return plan, measured
        assert self._from_host is not None
        made, found = self._from_host(request)
        self._known[key] = made, cast("OfSamples", found)
        return self._known[key]


def _measure(
    request: PlanRequest,
    weights: WeightSource,
    shapes: Shapes,
    progress: Progress | None,
    cache: Cache,
) -> Measurement:
    from ..spectral import measure

    step = progress(list(shapes)) if progress else None
    settings = QualitySettings.from_options(request.settings.model_dump())
    return measure(
        weights, shapes, settings, granularity=request.granularity, cache=cache, progress=step
    )
