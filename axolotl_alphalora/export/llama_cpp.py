"""An export as a LoRA for llama.cpp, in one GGUF file.

llama.cpp reads the rank of every layer from its tensors and one alpha for the file; a layer's scale
is alpha / rank, and 1 where alpha is 0. So alpha is 0 here, and all of the scale stays in B.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .factors import Factors

GgufType = Literal["f32", "f16"]
_DTYPES: Mapping[str, torch.dtype] = {"f32": torch.float32, "f16": torch.float16}
GGUF_TYPES: tuple[GgufType, ...] = ("f32", "f16")


@dataclass(frozen=True)
class Family:
    """How llama.cpp keeps the bases of one `model_type`.

    Attributes:
        architecture: llama.cpp's name for it.
        interleaved: Whether the rows of q and k are stored with the two halves of each rotary pair
            side by side, where transformers stores first halves and then second halves.
    """

    architecture: str
    interleaved: bool = False


FAMILIES: Mapping[str, Family] = {
    "gemma": Family("gemma"),
    "gemma2": Family("gemma2"),
    "gemma3_text": Family("gemma3"),
    "gpt2": Family("gpt2"),
    "granite": Family("granite", interleaved=True),
    "llama": Family("llama", interleaved=True),
    "mistral": Family("llama", interleaved=True),
    "olmo2": Family("olmo2"),
    "phi3": Family("phi3"),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "smollm3": Family("smollm3", interleaved=True),
}
"""By `model_type` of transformers: the architectures that a test runs in llama.cpp."""

_LAYERS = {
    *("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output"),
    *("ffn_gate", "ffn_up", "ffn_down"),
}
"""The tensors of a block that llama.cpp applies a LoRA to, in all of these architectures."""

_TEXT_PART = re.compile(r"^(?:model\.)?language_model\.(?:model\.)?")


def check_gguf(
    modules: Collection[str], config: Any, modules_to_save: Collection[str] = ()
) -> dict[str, str]:
    """Check that llama.cpp can be given these modules, before any work is done for it.

    Args:
        modules: Exact names of the adapted modules.
        config: The base model's configuration, of transformers.
        modules_to_save: Modules that the adapter holds whole.

    Returns:
        Module name to the name of its weight in a GGUF file.

    Raises:
        ImportError: If the package `gguf` is not installed; says how to install it.
        ValueError: If the architecture is unknown, or a module has no place; names it.
    """
    if modules_to_save:
        raise ValueError(
            f"A LoRA for llama.cpp cannot hold whole modules ({', '.join(modules_to_save)}): leave "
            "out --gguf, or train without `lora_modules_to_save`."
        )
    try:
        import gguf
    except ImportError as error:
        raise ImportError(
            "--gguf needs the package gguf: pip install 'gguf>=0.17' (or the extra `gguf`)."
        ) from error
    family = _family(config)
    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    if family.architecture not in known:
        raise ValueError(
            f"The installed package gguf does not know the architecture {family.architecture}: "
            "pip install --upgrade gguf"
        )
    text = config.get_text_config()
    names = gguf.get_tensor_name_map(known[family.architecture], text.num_hidden_layers)
    found: dict[str, str] = {}
    for module in modules:
        name = names.get_name(_TEXT_PART.sub("model.", module)) or ""
        # A tied head has no weight of its own there.
        head = name == "output" and not getattr(text, "tie_word_embeddings", True)
        if not head and name.rpartition(".")[2] not in _LAYERS:
            raise ValueError(
                f"llama.cpp has no place for a LoRA on {module} in its architecture "
                f"{family.architecture}: leave out --gguf, or train without that module "
                "(`lora_target_modules`)."
            )
        found[module] = f"{name}.weight"
    return found


def save_gguf(
    path: Path, updates: Mapping[str, Factors], config: Any, *, dtype: GgufType = "f32"
) -> None:
    """Write updates as a LoRA for llama.cpp.

    Args:
        path: The file; one that is there is replaced.
        updates: Exact module name to its update.
        config: The base model's configuration, of transformers.
        dtype: Of the saved factors.

    Raises:
        ImportError, ValueError: As of `check_gguf`, and where a number is too large for f16.
    """
    tensors = check_gguf(updates, config)
    import gguf

    family, text = _family(config), config.get_text_config()
    writer = gguf.GGUFWriter(str(path), family.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)
    file_types = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16}
    writer.add_file_type(file_types[dtype])
    for module, update in updates.items():
        b = update.b
        if family.interleaved and module.endswith((".q_proj", ".k_proj")):
            queries = text.num_attention_heads
            keys = getattr(text, "num_key_value_heads", None) or queries
            b = interleaved(b, queries if module.endswith(".q_proj") else keys)
        for which, factor in (("lora_a", update.a), ("lora_b", b)):
            saved = factor.detach().to(_DTYPES[dtype]).cpu().contiguous()
            if not saved.isfinite().all():
                raise ValueError(f"{module} is too large for {dtype}: take --gguf-type f32.")
            writer.add_tensor(f"{tensors[module]}.{which}", saved.numpy())
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Put the two rows of each rotary pair side by side, head by head.

    Args:
        weight: [heads * d, ...], each head's d / 2 first halves before its second halves.
        heads: Number of heads.
    """
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _family(config: Any) -> Family:
    kind = config.get_text_config().model_type
    if kind not in FAMILIES:
        raise ValueError(
            f"A LoRA for llama.cpp cannot be written for bases of the type {kind}: known are "
            f"{', '.join(FAMILIES)}. Leave out --gguf; the PEFT directory holds the whole export."
        )
    return FAMILIES[kind]
