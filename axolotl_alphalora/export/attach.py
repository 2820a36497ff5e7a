"""An export beside the routed adapter in the same model, to compare the two on one base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..adapter import AlphaLoraConfig, AlphaLoraLayer
from ..hosts.peft import ModulesToSaveWrapper
from .factors import Factors

__all__ = ["attach"]


def attach(model: Any, updates: Mapping[str, Factors], name: str = "export") -> None:
    """Add plain low-rank updates to a `PeftModel` as a second adapter.

    One expert without a router computes exactly what a LoRA does.

    Args:
        model: The model with the routed adapter `default`, which stays active.
        updates: Exact module name to its update.
        name: The new adapter's name.
    """
    routed: AlphaLoraConfig = model.peft_config["default"]
    config = AlphaLoraConfig(
        task_type=routed.task_type,
        r=1,
        lora_alpha=1.0,
        num_experts=dict.fromkeys(updates, 1),
        rank_pattern={module: update.rank for module, update in updates.items()},
        modules_to_save=list(routed.modules_to_save or ()) or None,
        inference_mode=True,
    )
    config.saved = True  # the layers are those of the routed adapter, as it was opened
    model.add_adapter(name, config)
    for module in model.modules():
        if isinstance(module, AlphaLoraLayer) and name in module.alphalora_A:
            update = updates[module.module_name]
            with torch.no_grad():
                module.alphalora_A[name].copy_(update.a)
                module.alphalora_B[name].copy_(update.b / module.scaling[name])
        elif isinstance(module, ModulesToSaveWrapper) and name in module.modules_to_save:
            trained = module.modules_to_save["default"].state_dict()
            module.modules_to_save[name].load_state_dict(trained)
