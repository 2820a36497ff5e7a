"""Bases whose checkpoint is quantised already: what the YAML may ask of them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from ..hosts.constants import QUANTISATION_PACKAGES
from . import sharding


def checkpoint_quantization(cfg: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `quantization_config` in the base model's own `config.json`.

    Args:
        cfg: The configuration; its `base_model` and `revision_of_model` are read.

    Returns:
        The mapping; None if the base is not quantised, or its config cannot be read here (the
        host reads it next, and says so).
    """
    from transformers import PretrainedConfig

    base = cfg.get("base_model_config") or cfg.get("base_model")
    if not base:
        return None
    options = {"revision": cfg["revision_of_model"]} if cfg.get("revision_of_model") else {}
    try:
        config, _ = PretrainedConfig.get_config_dict(str(base), **options)
    except (OSError, ValueError):
        return None
    return config.get("quantization_config")


def check_checkpoint(cfg: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Compare a quantised checkpoint with what the YAML asks for.

    Args:
        cfg: The configuration.
        found: Its base's `quantization_config`.

    Raises:
        ValueError: If the YAML asks for another precision, the checkpoint's method is one that
            experts cannot be added to, the package that loads it is missing, or FSDP cannot shard
            its layers.
    """
    base, method = cfg.get("base_model"), _method(found)
    asked = next((key for key in ("load_in_4bit", "load_in_8bit") if cfg.get(key)), None)
    if asked is not None and not found.get(asked):
        raise ValueError(
            f"`{asked}: true` was asked for, but the checkpoint `base_model: {base}` is quantised "
            f"already ({_spelt(found)}). Remove `{asked}` to use it as it is, or name the "
            "unquantised checkpoint."
        )
    if cfg.get("bnb_config_kwargs"):
        raise ValueError(
            "`bnb_config_kwargs` says how to quantise the base model, but the checkpoint "
            f"`base_model: {base}` is quantised already. Remove it, or name the unquantised "
            "checkpoint."
        )
    if cfg.get("model_quantization_config"):
        return
    if method not in QUANTISATION_PACKAGES:
        raise ValueError(
            f"The checkpoint `base_model: {base}` is quantised with {method}, whose layers cannot "
            f"carry experts. Use one of {', '.join(QUANTISATION_PACKAGES)}, or the unquantised "
            "checkpoint with `load_in_4bit: true`."
        )
    if find_spec(QUANTISATION_PACKAGES[method]) is None:
        raise ValueError(
            f"The checkpoint `base_model: {base}` is quantised with {method}, which needs a "
            f"package that is not installed: `pip install {QUANTISATION_PACKAGES[method]}`."
        )
    if sharding.is_sharded(cfg):
        _check_sharding(cfg, found)


def _check_sharding(cfg: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    base = f"`base_model: {cfg.get('base_model')}`"
    flag = next((key for key in ("load_in_4bit", "load_in_8bit") if found.get(key)), None)
    if flag is None:
        raise ValueError(
            "`fsdp_config`: of quantised layers the host shards those of bitsandbytes only, and "
            f"{base} is quantised with {_method(found)}. Remove `fsdp_config`, or name "
            "the unquantised checkpoint and set `load_in_4bit: true`."
        )
    if not cfg.get(flag):
        raise ValueError(
            f"`fsdp_config`: the checkpoint {base} is quantised ({_spelt(found)}), and the host "
            f"shards such layers only where the YAML says so as well. Set `{flag}: true`."
        )
    if flag == "load_in_4bit":
        storage = str(found.get("bnb_4bit_quant_storage") or "uint8").removeprefix("torch.")
        sharding.check_storage(
            cfg,
            storage,
            f"`fsdp_config`: the checkpoint {base} keeps its weights in {storage}",
            "Name a checkpoint that keeps them in bfloat16 or uint8, or the unquantised one.",
        )


def _method(found: Mapping[str, Any]) -> str:
    if found.get("load_in_4bit") or found.get("load_in_8bit"):
        return "bitsandbytes"
    return str(found.get("quant_method"))


def _spelt(found: Mapping[str, Any]) -> str:
    bits = next((f", {n}-bit" for n in (4, 8) if found.get(f"load_in_{n}bit")), "")
    return _method(found) + bits
