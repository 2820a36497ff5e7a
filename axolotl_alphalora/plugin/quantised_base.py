"""The base as it is, its checkpoint and the loaded model, against what the YAML asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..hosts.constants import QUANTISATION_PACKAGES
from . import host
from .quantization import KEY, asked, bnb_config, check_storage, is_sharded

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_GIB = 2**30


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
    flag = asked(cfg)
    if flag is not None and not found.get(flag):
        raise ValueError(
            f"`{flag}: true` was asked for, but the checkpoint `base_model: {base}` is quantised "
            f"already ({_spelt(found)}). Remove `{flag}` to use it as it is, or name the "
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
    if is_sharded(cfg):
        _check_sharding(cfg, found)


def _check_sharding(cfg: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    base = f"`base_model: {cfg.get('base_model')}`"
    flag = asked(found)
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
        check_storage(
            cfg,
            storage,
            f"`fsdp_config`: the checkpoint {base} keeps its weights in {storage}",
            "Name a checkpoint that keeps them in bfloat16 or uint8, or the unquantised one.",
        )


def _method(found: Mapping[str, Any]) -> str:
    if asked(found) is not None:
        return "bitsandbytes"
    return str(found.get("quant_method"))


def _spelt(found: Mapping[str, Any]) -> str:
    bits = next((f", {n}-bit" for n in (4, 8) if found.get(f"load_in_{n}bit")), "")
    return _method(found) + bits


def assert_quantized(model: PreTrainedModel, cfg: Any) -> None:
    """Check that the base model is quantised exactly as the YAML asks.

    Args:
        model: The base model, before adapters are added.
        cfg: The normalised Axolotl configuration.

    Raises:
        RuntimeError: If a layer is in another precision than asked for, or if the model was
            loaded with other bitsandbytes settings than `bnb_config` gives.
    """
    import bitsandbytes as bnb

    kinds = {"load_in_4bit": bnb.nn.Linear4bit, "load_in_8bit": bnb.nn.Linear8bitLt}
    flag = asked(cfg)
    if flag is None:
        if not _quantised_otherwise(model, cfg):
            _refuse_layers(model, tuple(kinds.values()), "neither load_in_4bit nor load_in_8bit")
        return

    expected = kinds.pop(flag)
    _refuse_layers(model, tuple(kinds.values()), f"{flag}: true")
    found = sum(isinstance(module, expected) for module in model.modules())
    left = _unconverted(model, expected)
    if left or not found:
        first = f", `{left[0]}` first" if left else ""
        raise RuntimeError(
            f"`{flag}: true` was asked for, but the loaded base model has {found} "
            f"{expected.__name__} layers and {len(left)} full-precision linear layers that should "
            f"have been converted{first}. Remove what keeps the model from being quantised (for "
            f"example `reinit_weights`), or remove `{flag}`."
        )
    _check_settings(model, cfg)


def prepare(model: PreTrainedModel, cfg: Any) -> None:
    """Ready the base model for training as the host does for `lora` and `qlora`.

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
    if asked(cfg) is not None and not _host_skips_preparation(cfg):
        model_loading.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _host_skips_preparation(cfg: Any) -> bool:
    from ..hosts.transformers import is_deepspeed_zero3_enabled

    return bool(
        is_sharded(cfg)
        or is_deepspeed_zero3_enabled()
        or (cfg.model_config_type == "qwen" and cfg.load_in_8bit)
    )


def _quantised_otherwise(model: PreTrainedModel, cfg: Any) -> bool:
    from ..hosts.transformers import quantiser

    quantizer = quantiser(model)
    by_checkpoint = quantizer is not None and quantizer.pre_quantized
    return by_checkpoint or KEY in (cfg.overrides_of_model_kwargs or {})


def _refuse_layers(model: PreTrainedModel, kinds: tuple[type, ...], what: str) -> None:
    wrong = [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
    if wrong:
        name, module = wrong[0]
        raise RuntimeError(
            f"The YAML asks for {what}, but the loaded base model has {len(wrong)} "
            f"{type(module).__name__} layers, `{name}` first. Ask for what the checkpoint "
            "contains, or use an unquantised checkpoint."
        )


def _unconverted(model: PreTrainedModel, expected: type) -> list[str]:
    """Names of the linear layers that bitsandbytes should have converted and did not."""
    from torch import nn

    from ..hosts.transformers import quantiser, should_convert_module

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

    from ..hosts.transformers import quantiser

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


def warn_unquantised(model: nn.Module) -> None:
    """Log what `describe_unquantised` says, once for all processes."""
    from .shared import is_first_process

    found = describe_unquantised(model)
    if found is not None and is_first_process():
        host.get_logger(__name__).warning("AlphaLoRA: %s", found)


def describe_unquantised(model: nn.Module) -> str | None:
    """Say which stacked weights of a base quantised by bitsandbytes are not quantised.

    Args:
        model: The loaded base model.

    Returns:
        A sentence with their number, parameters, size in GiB and the first name; None if there are
        none, or bitsandbytes did not quantise the model.
    """
    from ..hosts.transformers import quantiser
    from ..spectral.definition import stacked_weights

    method = getattr(getattr(quantiser(model), "quantization_config", None), "quant_method", None)
    if method is None or not str(getattr(method, "value", method)).startswith("bitsandbytes"):
        return None
    parameters = dict(model.named_parameters())
    left = {
        name: (math.prod(shape), parameters[name])
        for name, shape in stacked_weights(model).items()
        if parameters[name].is_floating_point()
    }
    if not left:
        return None
    count = sum(elements for elements, _ in left.values())
    size = sum(elements * parameter.element_size() for elements, parameter in left.values())
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for _, p in left.values()})
    return (
        f"bitsandbytes quantises linear layers only. {len(left)} stacked weights of the base (such "
        f"as a mixture-of-experts model's own experts) stay in {' and '.join(dtypes)}: {count:,} "
        f"parameters, {size / _GIB:.2f} GiB, {next(iter(left))} first. To quantise and train those "
        "use `adapter: qlora` with `quantize_moe_experts: true` and `lora_target_parameters`."
    )
