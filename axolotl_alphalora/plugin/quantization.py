"""What the YAML asks the host to do to its base: bitsandbytes for `adapter: alphalora`, and FSDP2.

The host builds a bitsandbytes configuration, prepares the quantised model and switches gradient
checkpointing on for its own adapter names only. Without these modules `load_in_4bit: true` would be
accepted and the run would train a full-precision base.

Four steps, each at the moment at which what it needs is known; the last two are in
`quantised_base`:

1. validation: `request` leaves plain-JSON placeholders in `overrides_of_model_kwargs`, because the
   model loader copies that mapping when it is constructed and no plugin hook runs earlier;
2. `pre_model_load`: `apply` fills the placeholders in place, now that the host has resolved the
   dtype and the model type;
3. `post_model_build`: `assert_quantized` checks what was really built;
4. `post_model_build`: `prepare` readies the model for training.

The host shards the layers of bitsandbytes for any adapter: it patches FSDP2 where `fsdp_config`
and `load_in_4bit` or `load_in_8bit` are both set. For `adapter: qlora` alone it also says which GPU
a rank loads the base on, so that is said here.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

from ..hosts.constants import NF4
from .host import FP32_STORAGE_MODELS, INT8_SKIPPED

KEY = "quantization_config"
_DEVICES = "device_map"
_LOCAL_RANK = {"": "local rank"}
_STORAGE = "bnb_4bit_quant_storage"
_KEPT_STORAGES = ("bfloat16", "uint8")
"""FSDP2 gathers in the dtype that it computes in, and casts no integers."""


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


def is_sharded(cfg: Mapping[str, Any]) -> bool:
    """Whether FSDP shards the base."""
    return bool(cfg.get("fsdp_config") or cfg.get("fsdp"))


def asked(cfg: Mapping[str, Any]) -> str | None:
    """The key by which a configuration, the YAML's or a checkpoint's, asks for quantised layers."""
    return next((key for key in ("load_in_4bit", "load_in_8bit") if cfg.get(key)), None)


def request(
    model_kwargs: Mapping[str, Any] | None, cfg: Mapping[str, Any], quantised: bool
) -> dict[str, Any] | None:
    """Add the placeholders that `apply` fills in to the host's `overrides_of_model_kwargs`.

    Args:
        model_kwargs: The validated `overrides_of_model_kwargs` (YAML: `model_kwargs`).
        cfg: The rest of the validated configuration.
        quantised: Whether the checkpoint itself says how it is quantised.

    Returns:
        The new mapping, of JSON types only; the old one if no quantisation is asked for.

    Raises:
        ValueError: If `model_kwargs.quantization_config` is the user's own as well, or FSDP would
            cast the packed weights of `bnb_config_kwargs.bnb_4bit_quant_storage`.
    """
    flag = asked(cfg)
    if flag is None:
        return None if model_kwargs is None else dict(model_kwargs)
    wanted = {flag: True}
    current = dict(model_kwargs or {})
    if is_sharded(cfg):
        current = {_DEVICES: dict(_LOCAL_RANK), **current}
    if quantised:
        return current or None
    storage = (cfg.get("bnb_config_kwargs") or {}).get(_STORAGE)
    if storage is not None:
        check_storage(
            cfg,
            storage,
            f"`bnb_config_kwargs.{_STORAGE}: {storage}`",
            "Remove it, or set it to bfloat16 or uint8.",
        )
    existing = current.get(KEY)
    if existing is not None and existing != wanted:
        raise ValueError(
            f"`{flag}: true` and `model_kwargs.{KEY}` both say how to quantise the base model. "
            f"Keep one of them; to change single bitsandbytes settings of `load_in_4bit`, use "
            "`bnb_config_kwargs`."
        )
    return {**current, KEY: wanted}


def check_storage(cfg: Mapping[str, Any], storage: str, where: str, remedy: str) -> None:
    """Refuse packed 4-bit weights in a dtype that FSDP's mixed precision would cast.

    Args:
        cfg: The configuration.
        storage: The dtype that the packed weights are kept in.
        where: What says so, as the message's subject.
        remedy: What to do instead.

    Raises:
        ValueError: If the run is in bf16 under FSDP and the storage is neither bfloat16 nor uint8.
    """
    if is_sharded(cfg) and cfg.get("bf16") and storage not in _KEPT_STORAGES:
        raise ValueError(
            f"{where}: with `bf16` FSDP would cast the packed 4-bit weights to bfloat16 and "
            f"destroy them. {remedy}"
        )


def bnb_config(cfg: Any) -> dict[str, Any] | None:
    """The keyword arguments of `BitsAndBytesConfig`, as the host sets them for its own adapters.

    Args:
        cfg: The normalised Axolotl configuration (`torch_dtype` and `model_config_type` are set).

    Returns:
        The settings of `qlora` for `load_in_4bit` and those of `lora` for `load_in_8bit`, with
        dtypes as strings so that the configuration stays serialisable; None if neither is set.

    Raises:
        ValueError: If `bnb_config_kwargs` names a setting that bitsandbytes would ignore.
    """
    if cfg.load_in_4bit:
        return _four_bit(cfg)
    if cfg.load_in_8bit:
        skipped = INT8_SKIPPED.get(cfg.model_config_type)
        return {"load_in_8bit": True} | ({"llm_int8_skip_modules": skipped} if skipped else {})
    return None


def apply(cfg: Any) -> None:
    """Complete the placeholders with what only the normalised configuration knows.

    The model loader holds the same mapping objects, so they have to be changed in place. If a host
    ever copies them deeply, `assert_quantized` says so.

    Args:
        cfg: The configuration that the model loader was constructed with.

    Raises:
        ValueError: If a setting is one that bitsandbytes ignores or FSDP cannot shard.
        RuntimeError: If the quantisation was asked for too late, or the host cannot shard it.
    """
    if asked(cfg) is not None and is_sharded(cfg):
        _check_run(cfg)
        _place(cfg.overrides_of_model_kwargs)
    config = bnb_config(cfg)
    if config is None or checkpoint_quantization(cfg) is not None:
        return
    slot = (cfg.overrides_of_model_kwargs or {}).get(KEY)
    if slot is None:
        raise RuntimeError(
            f"`{asked(cfg)}: true` was set after the configuration was validated, too late for "
            "the model loader. Set it in the YAML or on the command line."
        )
    slot.clear()
    slot.update(config)


def _place(model_kwargs: Mapping[str, Any] | None) -> None:
    """Put the rank's own device in the placeholder's stead.

    Left to itself, bitsandbytes loads on the current device, which is the first GPU on every rank
    until something has set another.

    Args:
        model_kwargs: The mapping whose values the model loader holds; changed in place.
    """
    from .host import get_device_type

    slot = (model_kwargs or {}).get(_DEVICES)
    if slot == _LOCAL_RANK:
        on_cpu = str(get_device_type()) == "cpu"
        slot[""] = "cpu" if on_cpu else int(os.environ.get("LOCAL_RANK", 0))


def _check_run(cfg: Any) -> None:
    """Check what is known only once the host has resolved the dtype and applied its patches.

    Args:
        cfg: The normalised configuration of a run with a bitsandbytes base under FSDP.

    Raises:
        ValueError: If the run turned out to be in fp16 on a 4-bit base.
        RuntimeError: If the host's patches of FSDP2 did not take.
    """
    import torch

    from .host import fsdp2_qlora

    if cfg.load_in_4bit and cfg.torch_dtype == torch.float16:
        raise ValueError(
            "`bf16` came to fp16 (`bf16: auto` does on a GPU without bf16), but under FSDP a 4-bit "
            "base works in bf16 and fp32 only. Use DDP: remove `fsdp_config`."
        )
    # The host replaces lines in torch's source and only warns where it does not find them.
    patches = ("apply_init_sharded_param_patch", "apply_init_unsharded_param_patch")
    failed = [
        name
        for name in patches
        if not getattr(getattr(fsdp2_qlora, name, None), "_axolotl_patched", False)
    ]
    if failed:
        raise RuntimeError(
            f"Axolotl could not make FSDP2 of torch {torch.__version__} shard the layers of "
            f"bitsandbytes ({', '.join(failed)} did not take), and the base would be left whole or "
            "damaged. Install the torch that this Axolotl asks for, or remove `fsdp_config`."
        )


def _four_bit(cfg: Any) -> dict[str, Any]:
    dtype = str(cfg.torch_dtype).removeprefix("torch.")
    # FSDP gathers in `torch_dtype`, and the host's inference casts the model to it, packed weights
    # included, which would destroy them in another storage. For bf16 this is the host's own choice.
    storage = "bfloat16" if cfg.deepspeed else dtype
    engine = cfg.deepspeed or is_sharded(cfg)
    if cfg.model_config_type in FP32_STORAGE_MODELS and not engine:
        storage = "float32"
    config: dict[str, Any] = {
        **NF4,
        "llm_int8_threshold": 6.0,
        "llm_int8_has_fp16_weight": False,
        "bnb_4bit_compute_dtype": dtype,
        _STORAGE: storage,
    }
    skipped = _skipped_in_4bit(cfg.model_config_type)
    if skipped is not None:
        config["llm_int8_skip_modules"] = skipped
    overrides = dict(cfg.bnb_config_kwargs or {})
    _check_overrides(overrides)
    return config | overrides


def _skipped_in_4bit(model_type: str | None) -> list[str] | None:
    try:
        from .host import bnb_4bit_skip_modules
    except ImportError:  # Axolotl 0.20 has no such function and this one case
        return ["out_proj"] if model_type == "falcon_h1" else None
    return bnb_4bit_skip_modules(model_type)


def _check_overrides(overrides: Mapping[str, Any]) -> None:
    from transformers import BitsAndBytesConfig

    # The host validates `blocksize` itself: 64 is the only value it accepts.
    known = set(inspect.signature(BitsAndBytesConfig).parameters) | {"blocksize"}
    unknown = sorted(set(overrides) - known)
    if unknown:
        names = ", ".join(f"`bnb_config_kwargs.{name}`" for name in unknown)
        raise ValueError(
            f"{names}: bitsandbytes has no such setting and would ignore it. Known settings: "
            f"{', '.join(sorted(known - {'kwargs'}))}."
        )
