"""Making plans: from a checkpoint's files, from a loaded model, or for a command's source.

Knows nothing of the host: who has one hands in how to plan from the model that it loads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Union

from ..allocation import Evidence, Plan, build_plan, check_budget
from ..progress import Progress, working
from ..settings import QualitySettings
from .request import PlanRequest, base_model, check_plan, layers
from .source import Source, check_estimator

if TYPE_CHECKING:
    from torch import nn

    from ..sensitivity import Sensitivity
    from ..spectral import Cache, Measurement, WeightSource

DEFAULT_SAMPLES = 64
"""Training samples that sensitivities are measured on, where a strategy does not say."""

Shapes = Mapping[str, tuple[int, int]]
Gradients = Callable[[Sequence[str], Any], tuple["Sensitivity", Mapping[str, Any]]]
"""Takes the modules' names and the strategy's options; returns what it measured, and on what."""
Measured = Union["Measurement", "Sensitivity", None]
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
        ModelNeeded: If the strategy goes by gradients.
        ValueError: If targets, strategy or budget do not fit the model.
    """
    base = base_model(request)
    shapes = layers(request, base)
    check_budget(request, shapes)
    if request.needs == "sensitivity":
        raise ModelNeeded(
            f"the strategy {request.strategy} goes by gradients, which take a loaded model and "
            "training data"
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
    gradients: Gradients | None = None,
) -> tuple[Plan, Measured]:
    """Plan from a loaded model, dequantised where it is quantised; before its first forward.

    Args:
        request: What to plan.
        model: The model, without an adapter.
        progress: For the reading of spectra.
        gradients: Measures sensitivities, for a strategy that needs them.

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
    if request.needs == "sensitivity":
        assert gradients is not None
        live.tensor(next(iter(shapes)))
        sensitivity, sample = gradients(list(shapes), request.settings)
        evidence = Evidence(live.description, sensitivities=sensitivity.by_task(), sample=sample)
        return build_plan(request, shapes, evidence), sensitivity
    measured = _measure(request, live, shapes, progress, default_cache())
    return plan_from_spectra(request, shapes, measured), measured


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
        measured: The spectra's fits. Their settings, such as a window that was ``auto``, are
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
    """Makes the plans of a command; gradients of a sample are taken once.

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
        self._gradients: dict[tuple[int, int], tuple[Plan, Sensitivity]] = {}

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
        if request.needs == "sensitivity" and self._from_host is None:
            raise ValueError(
                f"the strategy {request.strategy} goes by gradients on the run's training data: "
                "give an Axolotl YAML with `datasets`, not a bare model"
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
        if request.needs == "sensitivity":
            return self._from_gradients(request)
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
                :meth:`plan`.
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

    def _from_gradients(self, request: PlanRequest) -> tuple[Plan, Sensitivity]:
        from ..sensitivity import Sensitivity

        settings = request.settings
        key = getattr(settings, "samples", DEFAULT_SAMPLES), getattr(settings, "seed", 0)
        if key in self._gradients:
            known, sensitivity = self._gradients[key]
            squares = sensitivity.by_task()
            evidence = Evidence(known.weights, sensitivities=squares, sample=known.sample)
            return build_plan(request, known.shapes, evidence), sensitivity
        assert self._from_host is not None
        plan, measured = self._from_host(request)
        assert isinstance(measured, Sensitivity)
        self._gradients[key] = plan, measured
        return plan, measured


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
