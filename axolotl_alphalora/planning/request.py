"""What a plan is asked for: read from a configuration's keys, and checked against a saved plan."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..allocation import AllocationRequest, Plan
from ..hosts.constants import OPTIMIZER
from .config import AlphaLoraConfigBlock, plain
from .targets import Targets

if TYPE_CHECKING:
    from ..spectral import BaseModel, Cache

REQUEST_KEYS = (
    "base_model",
    "revision_of_model",
    "trust_remote_code",
    "lora_r",
    "lora_target_modules",
    "lora_target_linear",
    "lora_exclude_modules",
    "lora_modules_to_save",
    "peft_layers_to_transform",
    "peft_layers_pattern",
    "peft_autocast_adapter_dtype",
    "optimizer",
    "optim_args",
    "alphalora",
)
"""Keys of a configuration that its block and its request are read from."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest(AllocationRequest):
    """Everything a plan depends on but the training data, as plain values.

    Attributes:
        targets: The layers that get experts.
        revision: Revision of a hub model.
        trust_remote_code: Whether the model's own code may run.
    """

    targets: Targets
    revision: str | None = None
    trust_remote_code: bool = False


def read_block(cfg: Mapping[str, Any]) -> AlphaLoraConfigBlock:
    """Read the `alphalora:` block of a configuration, with its defaults.

    Raises:
        ValueError: If a key or value in it is wrong; names it.
    """
    block = cfg.get("alphalora")
    return AlphaLoraConfigBlock.model_validate({} if block is None else block)


def plan_request(cfg: Mapping[str, Any], block: AlphaLoraConfigBlock) -> PlanRequest:
    """Read a plan request from the keys of a configuration.

    Args:
        cfg: The host's configuration, or what `as_written` makes of the mapping in a YAML file.
        block: Its `alphalora:` block.

    Raises:
        ValueError: If `base_model` is missing, or a memory budget cannot be counted; names the key.
    """
    if not cfg.get("base_model"):
        raise ValueError("`base_model` is missing: the directory or hub id of the model to adapt.")
    options = dict(block.allocation or {"strategy": "alphalora"})
    return PlanRequest(
        base_model=str(cfg["base_model"]),
        revision=cfg.get("revision_of_model"),
        trust_remote_code=bool(cfg.get("trust_remote_code")),
        targets=Targets(
            modules=_plain(cfg.get("lora_target_modules")),
            linear=bool(cfg.get("lora_target_linear")),
            exclude=_plain(cfg.get("lora_exclude_modules")),
            layers=_plain(cfg.get("peft_layers_to_transform")),
            layers_pattern=_plain(cfg.get("peft_layers_pattern")),
            modules_to_save=_plain(cfg.get("lora_modules_to_save")),
        ),
        rank=cfg.get("lora_r") or 8,
        top_k=block.top_k,
        strategy=options.pop("strategy"),
        options=options,
        budget=block.budget,
        spend=block.spend or "experts",
        optimizer=None if block.memory_mib is None else _optimizer(cfg),
    )


def base_model(request: PlanRequest, cache: Cache | None = None) -> BaseModel:
    """Return the files of the request's base model."""
    from ..spectral import BaseModel, default_cache

    return BaseModel(
        request.base_model,
        request.revision,
        request.trust_remote_code,
        default_cache() if cache is None else cache,
    )


def layers(request: PlanRequest, base: BaseModel | None = None) -> dict[str, tuple[int, int]]:
    """Return exact names and (out, in) features of the layers that get experts.

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
    shapes, planned = layers(request), plan.shapes
    for name, shape in shapes.items():
        if name not in planned:
            raise ValueError(f"target module {name} is not in the plan (base_model, targets?)")
        if planned[name] != shape:
            raise ValueError(f"{name} is {shape} in the model, but {planned[name]} in the plan")
    stray = next((name for name in planned if name not in shapes), None)
    if stray is not None:
        raise ValueError(f"the plan has {stray}, which is no target module here")


def _optimizer(cfg: Mapping[str, Any]) -> str:
    """The optimizer that a memory budget counts.

    Raises:
        ValueError: If adapter weights are not in fp32, which is what is counted, or options of the
            optimizer may change its state.
    """
    if cfg.get("lora_modules_to_save"):
        raise ValueError(
            "`alphalora.memory_mib` counts experts and routers, but `lora_modules_to_save` trains "
            "whole modules beside them. Give `alphalora.total_parameters` instead."
        )
    if cfg.get("optim_args"):
        raise ValueError(
            "`alphalora.memory_mib` counts an optimizer's state with its defaults, which "
            "`optim_args` may change. Remove it, or give `alphalora.total_parameters` instead."
        )
    if cfg.get("peft_autocast_adapter_dtype") is False:
        raise ValueError(
            "`alphalora.memory_mib` counts adapter weights in fp32, but "
            "`peft_autocast_adapter_dtype: false` keeps them in the base model's dtype. Remove "
            "that option, or give `alphalora.total_parameters` instead."
        )
    return str(cfg.get("optimizer") or OPTIMIZER)


def _plain(value: Any) -> Any:
    """The host's value as a plain one; None where there is none."""
    value = plain(value)
    return None if value in (None, "", []) else value
