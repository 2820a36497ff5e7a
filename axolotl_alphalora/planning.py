"""From a base model's weights to a plan: spectra, scores, counts. Knows nothing of the host."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.tuners_utils import _get_in_out_features
from torch import nn

from .adapter import AlphaLoraConfig, resolve_targets
from .allocation import Plan, build_plan
from .blocks import group_by_block
from .spectral import (
    CheckpointWeights,
    LiveWeights,
    MissingTensor,
    UnreadableCheckpoint,
    WeightSource,
    block_scores,
    measure,
)

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

    def _matches(self, model: nn.Module, target: str | list[str]) -> list[str]:
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


def skeleton(request: PlanRequest) -> nn.Module:
    """The base model's modules on the meta device: names and sizes, no weights.

    Raises:
        ValueError: If the config cannot be read, or transformers has no language model for it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(
            request.base_model,
            revision=request.revision,
            trust_remote_code=request.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"base_model {request.base_model} cannot be opened: {error}") from error
    # Quantised or not, the linear layers have the same names.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if own_code or type(config) in AutoModelForCausalLM._model_mapping:
        factory: Any = AutoModelForCausalLM
    elif type(config) in AutoModelForImageTextToText._model_mapping:
        factory = AutoModelForImageTextToText
    else:
        raise ValueError(
            f"base_model {request.base_model} is a {config.model_type} model, for which "
            "transformers has no language model head. AlphaLoRA plans for language models."
        )
    with torch.device("meta"):
        return factory.from_config(config, trust_remote_code=request.trust_remote_code)


def plan_from_files(request: PlanRequest, progress: Progress | None = None) -> Plan:
    """Plan from the checkpoint's files, one tensor at a time, without loading the model.

    Args:
        request: What to plan.
        progress: Gets the names of the matrices to measure; what it returns is called after each.

    Raises:
        WeightsNotReadable: If the files hold no plain safetensors weights for the targets.
        ValueError: If targets, strategy or budget do not fit the model.
    """
    shapes = request.targets.resolve(skeleton(request))
    _check_budget(request, shapes)
    try:
        weights = CheckpointWeights.open(request.base_model, request.revision)
        return _plan(request, weights, shapes, progress)
    except (UnreadableCheckpoint, MissingTensor) as error:
        raise WeightsNotReadable(str(error)) from error


def plan_from_model(
    request: PlanRequest, model: nn.Module, progress: Progress | None = None
) -> Plan:
    """Plan from a loaded model, dequantised where it is quantised; before its first forward."""
    return _plan(request, LiveWeights(model), request.targets.resolve(model), progress)


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
    shapes = request.targets.resolve(skeleton(request))
    planned = {module.name: module.shape for module in plan.modules}
    for name, shape in shapes.items():
        if name not in planned:
            raise ValueError(f"target module {name} is not in the plan (base_model, targets?)")
        if tuple(planned[name]) != shape:
            raise ValueError(f"{name} is {shape} in the model, but {planned[name]} in the plan")
    stray = next((name for name in planned if name not in shapes), None)
    if stray is not None:
        raise ValueError(f"the plan has {stray}, which is no target module here")


def _plan(
    request: PlanRequest,
    weights: WeightSource,
    shapes: Mapping[str, tuple[int, int]],
    progress: Progress | None,
) -> Plan:
    names = list(shapes)
    estimator = str(request.options.get("estimator", "xmin_peak"))
    qualities = measure(weights, names, estimator, progress(names) if progress else None)
    for quality in qualities:
        if quality.numerical_rank < quality.num_eigenvalues:
            warnings.warn(
                f"{quality.module} has numerical rank {quality.numerical_rank} of "
                f"{quality.num_eigenvalues}: its alpha {quality.alpha:.2f} rests on those alone.",
                stacklevel=2,
            )
    return _build(request, dict(weights.description), shapes, block_scores(qualities), qualities)


def _check_budget(request: PlanRequest, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Build a plan on equal scores, so that an impossible budget costs no measuring."""
    equal = dict.fromkeys(group_by_block(shapes), 1.0)
    _build(request, {"source": "none"}, shapes, equal, ())


def _build(
    request: PlanRequest,
    weights: dict[str, Any],
    shapes: Mapping[str, tuple[int, int]],
    scores: Mapping[str, float],
    qualities: Sequence[Any],
) -> Plan:
    return build_plan(
        base_model=request.base_model,
        weights=weights,
        shapes=shapes,
        scores=scores,
        qualities=qualities,
        strategy=request.strategy,
        options=request.options,
        top_k=request.top_k,
        rank=request.rank,
        **request.budget,
    )
