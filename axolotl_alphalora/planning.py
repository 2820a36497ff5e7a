"""From a base model's weights to a plan: spectra, scores, counts. Knows nothing of the host.

What a plan needs of transformers and PEFT, the names and sizes of the target layers, is kept in
the cache: neither is imported when the same question comes again.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .allocation import Plan, build_plan, resolve_options
from .blocks import group_by_block
from .spectral import (
    BaseModel,
    Cache,
    LiveWeights,
    Measurement,
    QualitySettings,
    UnreadableCheckpoint,
    WeightSource,
    block_intervals,
    default_cache,
    measure,
)

if TYPE_CHECKING:
    from torch import nn

Progress = Callable[[Sequence[str]], Callable[[str], None]]


class WeightsNotReadable(ValueError):
    """The base model's weights cannot be read from its files; a loaded model can still serve."""


@dataclass(frozen=True)
class Targets:
    """Which linear layers get experts, as PEFT's options of the same names say.

    Attributes:
        modules: Names, or one regex.
        linear: Whether every linear layer but the output head is a target, besides `modules`.
        exclude: Names or a regex of modules to leave alone.
        layers: Indices of the blocks to adapt.
        layers_pattern: Name of the list of blocks.
        modules_to_save: Modules that are trained in full and so get no experts.
    """

    modules: str | list[str] | None = None
    linear: bool = False
    exclude: str | list[str] | None = None
    layers: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    modules_to_save: list[str] | None = None

    def resolve(self, model: nn.Module) -> dict[str, tuple[int, int]]:
        """Exact names and (out, in) features of the target layers, in the model's order.

        Raises:
            TypeError: If a target is no linear layer; names the module.
            ValueError: If a target matches nothing; names it.
        """
        from peft.tuners.tuners_utils import _get_in_out_features

        if not (self.linear or self.modules):
            raise ValueError(
                "No target layers: set `lora_target_linear: true`, or name the linear layers in "
                "`lora_target_modules`."
            )
        wanted: list[str | list[str]] = ["all-linear"] if self.linear else []
        if self.modules:
            wanted.append(self.modules)
        chosen = {name for target in wanted for name in self._matches(model, target)}
        shapes = {}
        for name, module in model.named_modules():
            if name in chosen:
                in_features, out_features = _get_in_out_features(module)
                assert in_features is not None and out_features is not None
                shapes[name] = (out_features, in_features)
        return shapes

    @property
    def identity(self) -> str:
        """A text that differs where the layers chosen may differ."""
        return json.dumps([asdict(self), version("peft"), version("axolotl-alphalora")])

    def _matches(self, model: nn.Module, target: str | list[str]) -> list[str]:
        from .adapter import AlphaLoraConfig, resolve_targets

        for option in (target, self.exclude):
            if isinstance(option, str):
                try:
                    re.compile(option)
                except re.error as error:
                    raise ValueError(f"{option!r} is no regular expression: {error}") from error
        return resolve_targets(
            AlphaLoraConfig(
                target_modules=target,
                exclude_modules=self.exclude,
                layers_to_transform=self.layers,
                layers_pattern=self.layers_pattern,
                modules_to_save=self.modules_to_save,
            ),
            model,
        )


@dataclass(frozen=True)
class PlanRequest:
    """Everything a plan depends on, as plain values.

    Attributes:
        base_model: Directory or hub id.
        revision: Revision of a hub model.
        trust_remote_code: Whether the model's own code may run.
        targets: The layers that get experts.
        rank: Rank of one expert.
        top_k: Experts used per token.
        strategy: Name of the allocation strategy.
        options: Its options.
        budget: `total_experts` or `experts_per_block`, `min_experts` and `max_experts`.
    """

    base_model: str
    targets: Targets
    revision: str | None = None
    trust_remote_code: bool = False
    rank: int = 8
    top_k: int = 2
    strategy: str = "alphalora"
    options: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, Any] = field(default_factory=lambda: {"experts_per_block": 5})


def measured_plan(
    request: PlanRequest,
    progress: Progress | None = None,
    *,
    load: bool = False,
    samples: int = 0,
    resampling: Progress | None = None,
    cache: Cache | None = None,
) -> tuple[Plan, Measurement]:
    """Plan from the checkpoint's files, one tensor at a time, without loading the model.

    Args:
        request: What to plan.
        progress: Gets the names of the matrices to measure; what it returns is called after each.
        load: Whether a quantised checkpoint may be loaded to be dequantised.
        samples: Resamples for the intervals of the blocks' scores; 0 leaves them out.
        resampling: As `progress`, for the resampling.
        cache: Where spectra and layers are kept; the default cache if None.

    Returns:
        The plan, and the measurement that it rests on.

    Raises:
        WeightsNotReadable: If the files hold no plain weights for the targets.
        ValueError: If targets, strategy or budget do not fit the model.
    """
    base = base_model(request, cache)
    shapes = layers(request, base)
    _check_budget(request, shapes)
    try:
        found = _measure(request, base.weights(shapes, load), shapes, progress, base.cache)
    except UnreadableCheckpoint as error:
        raise WeightsNotReadable(str(error)) from error
    intervals = {}
    if samples:
        step = resampling(list(shapes)) if resampling else None
        intervals = block_intervals(found, samples, progress=step)
    return _build(request, shapes, found, intervals), found


def plan_from_files(request: PlanRequest, progress: Progress | None = None) -> Plan:
    """Plan as :func:`measured_plan` does, where a quantised checkpoint will be loaded anyway.

    Raises:
        WeightsNotReadable: If the files hold no plain weights for the targets.
        ValueError: If targets, strategy or budget do not fit the model.
    """
    return measured_plan(request, progress)[0]


def plan_from_model(
    request: PlanRequest,
    model: nn.Module,
    progress: Progress | None = None,
    cache: Cache | None = None,
) -> Plan:
    """Plan from a loaded model, dequantised where it is quantised; before its first forward."""
    shapes = request.targets.resolve(model)
    found = _measure(
        request,
        LiveWeights(model),
        shapes,
        progress,
        default_cache() if cache is None else cache,
    )
    return _build(request, shapes, found)


def base_model(request: PlanRequest, cache: Cache | None = None) -> BaseModel:
    """The files of the request's base model."""
    return BaseModel(
        request.base_model,
        request.revision,
        request.trust_remote_code,
        default_cache() if cache is None else cache,
    )


def layers(request: PlanRequest, base: BaseModel | None = None) -> dict[str, tuple[int, int]]:
    """Exact names and (out, in) features of the layers that get experts.

    Raises:
        TypeError: If a target is no linear layer; names the module.
        ValueError: If the model cannot be opened, or a target matches nothing; names it.
    """
    base = base or base_model(request)
    return base.layers(request.targets.resolve, request.targets.identity)


def check_plan(plan: Plan, request: PlanRequest) -> None:
    """Check that a saved plan is one for this model and these settings.

    Raises:
        ValueError: Names the first difference.
    """
    if plan.rank != request.rank:
        raise ValueError(f"the plan is for rank {plan.rank}, but lora_r is {request.rank}")
    if plan.top_k != request.top_k:
        raise ValueError(
            f"the plan says top_k {plan.top_k}, but alphalora.top_k is {request.top_k}"
        )
    if plan.base_model != request.base_model:
        warnings.warn(
            f"The plan was made for {plan.base_model} and is used for {request.base_model}.",
            stacklevel=2,
        )
    shapes = layers(request)
    planned = {module.name: module.shape for module in plan.modules}
    for name, shape in shapes.items():
        if name not in planned:
            raise ValueError(f"target module {name} is not in the plan (base_model, targets?)")
        if tuple(planned[name]) != shape:
            raise ValueError(f"{name} is {shape} in the model, but {planned[name]} in the plan")
    stray = next((name for name in planned if name not in shapes), None)
    if stray is not None:
        raise ValueError(f"the plan has {stray}, which is no target module here")


def _measure(
    request: PlanRequest,
    weights: WeightSource,
    shapes: Mapping[str, tuple[int, int]],
    progress: Progress | None,
    cache: Cache,
) -> Measurement:
    step = progress(list(shapes)) if progress else None
    settings = QualitySettings.from_options(resolve_options(request.strategy, request.options))
    return measure(weights, shapes, settings, cache=cache, progress=step)


def _check_budget(request: PlanRequest, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Build a plan on equal scores, so that an impossible budget costs no measuring."""
    equal = dict.fromkeys(group_by_block(shapes), 1.0)
    _build(request, shapes, equal)


def _build(
    request: PlanRequest,
    shapes: Mapping[str, tuple[int, int]],
    found: Measurement | Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> Plan:
    measured = found if isinstance(found, Measurement) else None
    options = dict(request.options)
    if measured is not None:
        options |= measured.settings.as_options()
    return build_plan(
        base_model=request.base_model,
        weights=measured.description if measured else {"source": "none"},
        shapes=shapes,
        scores=measured.scores if measured else found,  # type: ignore[arg-type]
        qualities=measured.matrices if measured else (),
        intervals=intervals or {},
        strategy=request.strategy,
        options=options,
        top_k=request.top_k,
        rank=request.rank,
        **request.budget,
    )
