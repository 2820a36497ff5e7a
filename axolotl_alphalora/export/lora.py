"""An export as a plain PEFT LoRA: on disk, and beside the routed adapter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..adapter import AlphaLoraConfig, AlphaLoraLayer
from ..files import ADAPTER_WEIGHTS, KEY_PREFIX
from ..hosts.peft import ModulesToSaveWrapper, convert_peft_config_for_transformers
from .factors import Factors


def save_lora(
    folder: Path,
    updates: Mapping[str, Factors],
    source: AlphaLoraConfig,
    others: Mapping[str, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    fan_in_fan_out: bool = False,
    prefix: str | None = None,
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
        prefix: What servers call the part of a larger model that is called `model` here.

    Returns:
        The `peft.LoraConfig`.

    Raises:
        ValueError: If a module is not of the part that the prefix names anew.
    """
    from peft import LoraConfig

    updates = {placed(name, prefix): update for name, update in updates.items()}
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


def check_targets(modules: Iterable[str], base: Any) -> None:
    """Check that PEFT will add a LoRA to the modules that it is for.

    In models whose routed experts lie in one tensor, it takes modules with the old names of those
    (`gate_proj` and its kin) for the experts, also those of a dense or a shared MLP.

    Args:
        modules: Exact names.
        base: The base model.

    Raises:
        ValueError: If it would take some for others; names the first.
    """
    from peft import LoraConfig

    wanted = sorted(modules)
    config = LoraConfig(target_modules=list(wanted))
    advice = (
        "Serve the routed adapter instead (`alphalora serve`), or train one without these modules "
        "(lora_exclude_modules)."
    )
    where = f"PEFT cannot open a LoRA of this {base.config.model_type}:"
    try:
        convert_peft_config_for_transformers(config, base, None)
    except ValueError as error:  # it wants all or none of the names of experts
        raise ValueError(f"{where} {error} {advice}") from error
    lost = [name for name in wanted if name not in set(config.target_modules or ())]
    if lost:
        raise ValueError(
            f"{where} it would take {lost[0]} for one of the routed experts, by its last name. "
            f"{advice}"
        )


def placed(module: str, prefix: str | None) -> str:
    """Return the name of a module where a model is part of a larger one.

    Args:
        module: Its name in the model by itself: `model....`, or `lm_head`, which stays.
        prefix: What `model` is there; None where the model stands by itself.

    Raises:
        ValueError: If it is no such name.
    """
    if prefix is None or module == _HEAD:
        return module
    part = module.removeprefix(_PART)
    if part == module or module.startswith(f"{prefix}."):
        raise ValueError(f"--prefix {prefix} is for modules of `model`, and {module} is not one.")
    return f"{prefix}.{part}"


_HEAD, _PART = "lm_head", "model."


def attach(model: Any, updates: Mapping[str, Factors]) -> None:
    """Add plain low-rank updates to a `PeftModel` as a second adapter, `export`.

    One expert without a router computes exactly what a LoRA does.

    Args:
        model: The model with the routed adapter `default`, which stays active.
        updates: Exact module name to its update.
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
    model.add_adapter("export", config)
    for module in model.modules():
        if isinstance(module, AlphaLoraLayer) and "export" in module.alphalora_A:
            update = updates[module.module_name]
            with torch.no_grad():
                module.alphalora_A["export"].copy_(update.a)
                module.alphalora_B["export"].copy_(update.b / module.scaling["export"])
        elif isinstance(module, ModulesToSaveWrapper) and "export" in module.modules_to_save:
            trained = module.modules_to_save["default"].state_dict()
            module.modules_to_save["export"].load_state_dict(trained)
