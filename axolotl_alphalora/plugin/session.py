"""The run's model as the host would load it, for plans that need one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from sys import stderr
from tempfile import TemporaryDirectory
from typing import Any

from ..allocation import Plan
from ..planning import ADAPTER, Measured, PlanRequest, plan_from_model
from ..planning.keys import PLUGIN
from ..sensitivity import Sample


class HostModel:
    """A configuration's base model, loaded by the host when it is first needed.

    Quantisation, dtypes and patches are those of `axolotl train`. Nothing is written to the run's
    output directory; prepared datasets are kept where the run will look for them.

    Args:
        config: The Axolotl YAML.
    """

    def __init__(self, config: Path) -> None:
        self._config = config
        # The host keeps a changed tokenizer there, and reads it again.
        self._output = TemporaryDirectory()
        self._loaded: tuple[Any, Any] | None = None

    def plan(self, request: PlanRequest) -> tuple[Plan, Measured]:
        """Plan as the run would after loading this model.

        Raises:
            ValueError: If the configuration, its data or the budget do not fit.
        """
        from .gradients import gradients
        from .samples import PLAN_FIRST

        with _host_output():
            cfg, model = self._load(PLAN_FIRST)
            return plan_from_model(request, model, None, gradients(cfg, model))

    def base(self, advice: str) -> Any:
        """Return the base model, without an adapter.

        Args:
            advice: What to do where the configuration's data cannot be sampled.

        Raises:
            ValueError: If the configuration or its data do not fit.
        """
        with _host_output():
            return self._load(advice)[1]

    @property
    def base_model(self) -> str:
        """The base that was loaded: the configuration's `base_model`."""
        assert self._loaded is not None
        return self._loaded[0].base_model

    def rows(self, count: int, seed: int, advice: str) -> tuple[list[Sample], list[Sample]]:
        """Draw training rows, and validation rows where the run has any.

        Args:
            count: Rows of each.
            seed: Of the drawing.
            advice: What to do where the data cannot be sampled.

        Raises:
            ValueError: If the configuration or its data do not fit.
        """
        from .samples import draw_samples, draw_validation

        with _host_output():
            cfg, _ = self._load(advice)
            return draw_samples(cfg, count, seed, advice), draw_validation(cfg, count, seed)

    def _load(self, advice: str) -> tuple[Any, Any]:
        if self._loaded is None:
            from .host import load_cfg, load_model_and_tokenizer
            from .samples import check_data

            overrides = _overrides(self._config, self._output.name)
            cfg = load_cfg(str(self._config), **overrides)
            check_data(cfg, advice)
            adapted, _, _ = load_model_and_tokenizer(cfg=cfg)
            self._loaded = cfg, adapted.unload()
        return self._loaded


def _overrides(config: Path, directory: str) -> dict[str, Any]:
    """What differs from the run: an adapter that costs nothing to plan, and no output."""
    import yaml

    raw = yaml.safe_load(config.read_text(encoding="utf-8"))
    plugins = list(raw.get("plugins") or [])
    return {
        "adapter": ADAPTER,
        "plugins": plugins if PLUGIN in plugins else [*plugins, PLUGIN],
        ADAPTER: {"allocation": "uniform"},
        "output_dir": directory,
        "lora_model_dir": None,
        "resume_from_checkpoint": None,
    }


@contextmanager
def _host_output() -> Iterator[None]:
    """Keep what the host prints out of a plan that is printed."""
    with redirect_stdout(stderr):
        yield
