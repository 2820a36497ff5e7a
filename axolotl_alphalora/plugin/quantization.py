"""Quantised bases for `adapter: alphalora`.

The host builds a bitsandbytes configuration, prepares the quantised model and switches gradient
checkpointing on for its own adapter names only. Without this module `load_in_4bit: true` would be
accepted and the run would train a full-precision base.

Four steps, each at the moment at which what it needs is known:

1. validation: `request` leaves a plain-JSON placeholder in `overrides_of_model_kwargs`, because the
   model loader copies that mapping when it is constructed and no plugin hook runs earlier;
2. `pre_model_load`: `apply` fills the placeholder in place, now that the host has resolved the
   dtype and the model type;
3. `post_model_build`: `assert_quantized` checks what was really built;
4. `post_model_build`: `prepare` readies the model for training.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..hosts.constants import NF4
from ..hosts.transformers import is_deepspeed_zero3_enabled, quantiser, should_convert_module
from . import sharding
from .host import FP32_STORAGE_MODELS, INT8_SKIPPED
from .prequantised import checkpoint_quantization

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

KEY = "quantization_config"
_STORAGE = "bnb_4bit_quant_storage"


def placeholder(load_in_4bit: bool | None, load_in_8bit: bool | None) -> dict[str, Any] | None:
    """The smallest quantisation config that stands for what the YAML asks for."""
    if load_in_4bit:
        return {"load_in_4bit": True}
    if load_in_8bit:
        return {"load_in_8bit": True}
    return None


def request(
    model_kwargs: Mapping[str, Any] | None, cfg: Mapping[str, Any], quantised: bool
) -> dict[str, Any] | None:
    """Adds the placeholders that `apply` fills in to the host's `overrides_of_model_kwargs`.

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
    wanted = placeholder(cfg.get("load_in_4bit"), cfg.get("load_in_8bit"))
    if wanted is None:
        return None if model_kwargs is None else dict(model_kwargs)
    current = dict(model_kwargs or {})
    if sharding.is_sharded(cfg):
        current = sharding.request(current)
    if quantised:
        return current or None
    storage = (cfg.get("bnb_config_kwargs") or {}).get(_STORAGE)
    if storage is not None:
        sharding.check_storage(
            cfg,
            storage,
            f"`bnb_config_kwargs.{_STORAGE}: {storage}`",
            "Remove it, or set it to bfloat16 or uint8.",
        )
    existing = current.get(KEY)
    if existing is not None and existing != wanted:
        flag = next(iter(wanted))
        raise ValueError(
            f"`{flag}: true` and `model_kwargs.{KEY}` both say how to quantise the base model. "
            f"Keep one of them; to change single bitsandbytes settings of `load_in_4bit`, use "
            "`bnb_config_kwargs`."
        )
    return {**current, KEY: wanted}


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
    """Completes the placeholders with what only the normalised configuration knows.

    The model loader holds the same mapping objects, so they have to be changed in place. If a host
    ever copies them deeply, `assert_quantized` says so.

    Args:
        cfg: The configuration that the model loader was constructed with.

    Raises:
        ValueError: If a setting is one that bitsandbytes ignores or FSDP cannot shard.
        RuntimeError: If the quantisation was asked for too late, or the host cannot shard it.
    """
    if _asked(cfg) is not None and sharding.is_sharded(cfg):
        sharding.check_run(cfg)
        sharding.place(cfg.overrides_of_model_kwargs)
    config = bnb_config(cfg)
    if config is None or checkpoint_quantization(cfg) is not None:
        return
    slot = (cfg.overrides_of_model_kwargs or {}).get(KEY)
    if slot is None:
        raise RuntimeError(
            f"`{_asked(cfg)}: true` was set after the configuration was validated, too late for "
            "the model loader. Set it in the YAML or on the command line."
        )
    slot.clear()
    slot.update(config)


def assert_quantized(model: PreTrainedModel, cfg: Any) -> None:
    """Checks that the base model is quantised exactly as the YAML asks.

    Args:
        model: The base model, before adapters are added.
        cfg: The normalised Axolotl configuration.

    Raises:
        RuntimeError: If a layer is in another precision than asked for, or if the model was
            loaded with other bitsandbytes settings than `bnb_config` gives.
    """
    import bitsandbytes as bnb

    kinds = {"load_in_4bit": bnb.nn.Linear4bit, "load_in_8bit": bnb.nn.Linear8bitLt}
    asked = _asked(cfg)
    if asked is None:
        if not _quantised_otherwise(model, cfg):
            _refuse_layers(model, tuple(kinds.values()), "neither load_in_4bit nor load_in_8bit")
        return

    expected = kinds.pop(asked)
    _refuse_layers(model, tuple(kinds.values()), f"{asked}: true")
    found = sum(isinstance(module, expected) for module in model.modules())
    left = _unconverted(model, expected)
    if left or not found:
        first = f", `{left[0]}` first" if left else ""
        raise RuntimeError(
            f"`{asked}: true` was asked for, but the loaded base model has {found} "
            f"{expected.__name__} layers and {len(left)} full-precision linear layers that should "
            f"have been converted{first}. Remove what keeps the model from being quantised (for "
            f"example `reinit_weights`), or remove `{asked}`."
        )
    _check_settings(model, cfg)


def prepare(model: PreTrainedModel, cfg: Any) -> None:
    """Readies the base model for training as the host does for `lora` and `qlora`.

    Gradient checkpointing is enabled here and not by `prepare_model_for_kbit_training`, which
    falls back to reentrant checkpointing; so the user's `gradient_checkpointing_kwargs` hold. The
    function is looked up in the host's module, because the host replaces it there to keep the
    embeddings from being upcast.

    Args:
        model: The base model, before adapters are added and before the host casts it back to
            `torch_dtype`.
        cfg: The normalised Axolotl configuration.
    """
    from .host import model_loading

    if cfg.gradient_checkpointing:
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs=cfg.gradient_checkpointing_kwargs
        )
    if _asked(cfg) is not None and not _host_skips_preparation(cfg):
        model_loading.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _four_bit(cfg: Any) -> dict[str, Any]:
    dtype = _dtype_name(cfg.torch_dtype)
    # FSDP gathers in `torch_dtype`, and the host's inference casts the model to it, packed weights
    # included, which would destroy them in another storage. For bf16 this is the host's own choice.
    storage = "bfloat16" if cfg.deepspeed else dtype
    engine = cfg.deepspeed or sharding.is_sharded(cfg)
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


def _dtype_name(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")


def _asked(cfg: Any) -> str | None:
    if cfg.load_in_4bit:
        return "load_in_4bit"
    return "load_in_8bit" if cfg.load_in_8bit else None


def _host_skips_preparation(cfg: Any) -> bool:
    return bool(
        sharding.is_sharded(cfg)
        or is_deepspeed_zero3_enabled()
        or (cfg.model_config_type == "qwen" and cfg.load_in_8bit)
    )


def _quantised_otherwise(model: PreTrainedModel, cfg: Any) -> bool:
    quantizer = quantiser(model)
    by_checkpoint = quantizer is not None and quantizer.pre_quantized
    return by_checkpoint or KEY in (cfg.overrides_of_model_kwargs or {})


def _refuse_layers(model: PreTrainedModel, kinds: tuple[type, ...], asked: str) -> None:
    wrong = [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
    if wrong:
        name, module = wrong[0]
        raise RuntimeError(
            f"The YAML asks for {asked}, but the loaded base model has {len(wrong)} "
            f"{type(module).__name__} layers, `{name}` first. Ask for what the checkpoint "
            "contains, or use an unquantised checkpoint."
        )


def _unconverted(model: PreTrainedModel, expected: type) -> list[str]:
    """Names of the linear layers that bitsandbytes should have converted and did not."""
    from torch import nn

    quantizer = quantiser(model)
    skipped = list(quantizer.modules_to_not_convert or []) if quantizer is not None else []
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not isinstance(module, expected)
        and should_convert_module(name, skipped)
    ]


def _check_settings(model: PreTrainedModel, cfg: Any) -> None:
    from transformers import BitsAndBytesConfig

    quantizer = quantiser(model)
    if quantizer.pre_quantized:
        return
    used = quantizer.quantization_config.to_dict()
    wanted = BitsAndBytesConfig(**(bnb_config(cfg) or {})).to_dict()
    differing = sorted(name for name, value in wanted.items() if used.get(name) != value)
    if differing:
        details = ", ".join(f"{name}={used.get(name)} for {wanted[name]}" for name in differing)
        raise RuntimeError(
            f"The base model was quantised with other settings than the YAML asks for: {details}. "
            "The installed Axolotl does not take them over from `overrides_of_model_kwargs`; "
            "please report its version."
        )
