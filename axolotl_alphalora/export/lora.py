"""A plain PEFT LoRA on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..adapter import AlphaLoraConfig
from ..files import ADAPTER_WEIGHTS, KEY_PREFIX
from .factors import Factors

__all__ = ["pad", "save_lora"]


def pad(factors: Factors, rank: int) -> Factors:
    """Raise the rank of an update with zeros, which changes nothing.

    Args:
        factors: The update.
        rank: The rank to have, at least that of the update.
    """
    more = rank - factors.rank
    return Factors(
        torch.nn.functional.pad(factors.a, (0, 0, 0, more)),
        torch.nn.functional.pad(factors.b, (0, more)),
    )


def save_lora(
    folder: Path,
    updates: Mapping[str, Factors],
    source: AlphaLoraConfig,
    others: Mapping[str, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    fan_in_fan_out: bool = False,
) -> Any:
    """Write updates as `adapter_config.json` and `adapter_model.safetensors`.

    All of the scale is in B: `lora_alpha` equals the rank of every module, so that programs which
    read one alpha and one rank for all modules compute the same.

    Args:
        folder: An existing directory.
        updates: Exact module name to its update.
        source: The routed adapter's configuration: base model, task and `modules_to_save` stay.
        others: Further tensors of the adapter's file, by the key there (`modules_to_save`).
        dtype: Of the saved factors.
        fan_in_fan_out: Whether the base's layers are transformers' `Conv1D`.

    Returns:
        The `peft.LoraConfig`.
    """
    from peft import LoraConfig

    most = max(update.rank for update in updates.values())
    lower = {f"^{re.escape(n)}": u.rank for n, u in updates.items() if u.rank != most}
    config = LoraConfig(
        task_type=source.task_type,
        base_model_name_or_path=source.base_model_name_or_path,
        revision=source.revision,
        r=most,
        lora_alpha=most,
        rank_pattern=lower,
        alpha_pattern=dict(lower),
        target_modules=sorted(updates),
        modules_to_save=source.modules_to_save,
        fan_in_fan_out=fan_in_fan_out,
        inference_mode=True,
    )
    tensors = {key: value.detach().cpu().contiguous() for key, value in others.items()}
    for name, update in updates.items():
        key = f"{KEY_PREFIX}{name}"
        tensors[f"{key}.lora_A.weight"] = update.a.to(dtype).cpu().contiguous()
        tensors[f"{key}.lora_B.weight"] = update.b.to(dtype).cpu().contiguous()
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    return config
