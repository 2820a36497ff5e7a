"""The run's model as the host would load it, and what is measured of it on the run's own data."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from sys import stderr
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from ..activations import measure_explained_variance
from ..allocation import SAMPLED, Plan, components_needed
from ..blocks import Shapes
from ..planning import ADAPTER, Measured, MeasureSamples, PlanRequest, plan_from_model
from ..planning.keys import PLUGIN, read_yaml
from ..planning.planner import OfSamples
from ..samples import Sample
from ..sensitivity import measure_sensitivity
from .shared import progress_bar


class HostModel:
    """A configuration's base model, loaded by the host when it is first needed.

    Quantisation, dtypes and patches are those of `axolotl train`. Nothing is written to the run's
    output directory; prepared datasets are kept where the run will look for them.

    Args:
        config: The Axolotl YAML.
        halves: Whether plans by either half of the samples will be asked for, too.
    """

    def __init__(self, config: Path, halves: bool = False) -> None:
        self._config, self._halves = config, halves
        # The host keeps a changed tokenizer there, and reads it again.
        self._output = TemporaryDirectory()
        self._loaded: tuple[Any, Any] | None = None

    def plan(self, request: PlanRequest) -> tuple[Plan, Measured]:
        """Plan as the run would after loading this model.

        Raises:
            ValueError: If the configuration, its data or the budget do not fit.
        """
        from .samples import PLAN_FIRST

        with _host_output():
            cfg, model = self._load(PLAN_FIRST)
            return plan_from_model(request, model, None, on_samples(cfg, model, self._halves))

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
    """What differs from the run: one process, an adapter that costs nothing, and no output."""
    raw = read_yaml(config)
    plugins = list(raw.get("plugins") or [])
    targets = any(raw.get(key) for key in ("lora_target_linear", "lora_target_modules"))
    return {
        "adapter": ADAPTER,
        "plugins": plugins if PLUGIN in plugins else [*plugins, PLUGIN],
        ADAPTER: {"allocation": "uniform", "experts_per_block": 1, "top_k": 1},
        # A YAML that continues an adapter may leave these out.
        "lora_r": raw.get("lora_r") or 1,
        "lora_alpha": raw.get("lora_alpha") or 1,
        **({} if targets else {"lora_target_linear": True}),
        "output_dir": directory,
        "lora_model_dir": None,
        "resume_from_checkpoint": None,
        # A single process has nobody to share the weights with.
        **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config")),
    }


@contextmanager
def _host_output() -> Iterator[None]:
    """Keep what the host prints out of a plan that is printed."""
    with redirect_stdout(stderr):
        yield


def on_samples(cfg: Any, model: nn.Module, halves: bool = False) -> MeasureSamples:
    """Return what measures a model on samples of a configuration's training data.

    Args:
        cfg: The host's validated configuration.
        model: The model as the host has loaded it, without an adapter.
        halves: Whether the two halves of the samples will be asked for, as a comparison does.
    """

    def measure(request: PlanRequest, shapes: Shapes) -> tuple[OfSamples, Mapping[str, Any]]:
        from .samples import draw_samples

        number, seed = request.drawing
        samples = draw_samples(cfg, number, seed)
        bar = progress_bar(SAMPLED[request.needs], "sample", len(samples))
        autocast = _autocast(cfg)
        found: OfSamples
        if request.needs == "activations":
            components = components_needed(request, shapes)
            found = measure_explained_variance(
                model,
                list(shapes),
                samples,
                components,
                halves=halves,
                autocast=autocast,
                progress=bar,
            )
        else:
            found = measure_sensitivity(
                model,
                list(shapes),
                samples,
                checkpointing=bool(cfg.gradient_checkpointing),
                autocast=autocast,
                progress=bar,
            )
        tasks = dict(Counter(sample.task for sample in samples))
        return found, {"tasks": tasks, "seed": seed, "digest": _digest(samples)}

    return measure


def _autocast(cfg: Any) -> torch.dtype | None:
    """The dtype that the run computes in, where it is not the weights' own."""
    if cfg.bf16 and cfg.bf16 != "full":
        return torch.bfloat16
    return torch.float16 if cfg.fp16 else None


def _digest(samples: Sequence[Sample]) -> str:
    """Identify samples by their tasks and tokens."""
    found = hashlib.sha256()
    for sample in samples:
        found.update(sample.task.encode())
        for key in sorted(sample.inputs):
            found.update(key.encode() + sample.inputs[key].numpy().tobytes())
    return found.hexdigest()
