"""What the YAML says about planning, as plain values: the same for a raw and a validated file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..hosts.constants import OPTIMIZER
from ..planning import PlanRequest, Targets
from .block import BUDGET, AlphaLoraConfigBlock, plain


def plan_request(cfg: Mapping[str, Any]) -> PlanRequest:
    """Read a plan request from the keys of a configuration.

    Args:
        cfg: The host's configuration, or what `as_written` makes of the mapping in a YAML file.

    Raises:
        ValueError: If `base_model` is missing, or the `alphalora:` block is wrong; names the key.
    """
    if not cfg.get("base_model"):
        raise ValueError("`base_model` is missing: the directory or hub id of the model to adapt.")
    block = read_block(cfg)
    allocation = dict(block.allocation or {"strategy": "alphalora"})
    budget = {key: getattr(block, key) for key in BUDGET if getattr(block, key) is not None}
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
        strategy=allocation.pop("strategy"),
        options=allocation,
        budget=budget,
        spend=block.spend or "experts",
        optimizer=_optimizer(cfg) if "memory_mib" in budget else None,
    )


def read_block(cfg: Mapping[str, Any]) -> AlphaLoraConfigBlock:
    """The `alphalora:` block with its defaults.

    Raises:
        ValueError: If a key or value in it is wrong; names it.
    """
    block = cfg.get("alphalora")
    return AlphaLoraConfigBlock.model_validate({} if block is None else block)


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
