"""Making plans for one source, whatever they need: nothing, the files, or the loaded model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..allocation import Plan
from ..planning import PlanRequest, build, check_plan, measured_plan, sensitivity_evidence
from ..progress import working
from .options import check_estimator
from .source import Source

if TYPE_CHECKING:
    from ..planning import Found
    from ..plugin.session import HostModel
    from ..sensitivity import Sensitivity

__all__ = ["Planner", "shapes_of"]


class Planner:
    """Makes plans; the model is loaded once, and gradients of a sample are taken once.

    Args:
        config: The Axolotl YAML, None for a bare model.
        console: A rich console for the progress bars; None shows none.

    Attributes:
        console: The same.
    """

    def __init__(self, config: Path | None, console: Any = None) -> None:
        self._config = config
        self.console = console
        self._host: HostModel | None = None
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
        if request.needs == "sensitivity" and self._config is None:
            raise ValueError(
                f"the strategy {request.strategy} goes by gradients on the run's training data: "
                "give an Axolotl YAML with `datasets`, not a bare model"
            )

    def plan(self, request: PlanRequest, samples: int = 0) -> tuple[Plan, Found]:
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
        with working(self.console) as doing:
            return measured_plan(
                request,
                doing("Reading spectra"),
                load=True,
                samples=samples,
                resampling=doing("Resampling"),
            )

    def settled(self, source: Source, samples: int = 0) -> tuple[Plan, Found]:
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
        from ..plugin.gradients import DEFAULT_SAMPLES
        from ..plugin.session import HostModel
        from ..sensitivity import Sensitivity

        settings = request.settings
        key = getattr(settings, "samples", DEFAULT_SAMPLES), getattr(settings, "seed", 0)
        if key in self._gradients:
            known, measured = self._gradients[key]
            assert known.sample is not None
            evidence = sensitivity_evidence(measured, known.weights, known.sample)
            return build(request, shapes_of(known), evidence), measured
        assert self._config is not None
        self._host = self._host or HostModel(self._config)
        plan, found = self._host.plan(request)
        assert isinstance(found, Sensitivity)
        self._gradients[key] = plan, found
        return plan, found


def shapes_of(plan: Plan) -> dict[str, tuple[int, int]]:
    """Return the names of a plan's modules, in the model's order, with their shapes."""
    return {module.name: module.shape for module in plan.modules}
