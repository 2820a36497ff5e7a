"""Plain LoRAs on disk, and experts that start from them."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from axolotl_alphalora.adapter import AlphaLoraConfig
from axolotl_alphalora.blocks import block_name
from helpers.kinds import fresh, layers, outputs, trainable

FIRST = "model.layers.0.self_attn.q_proj"
MINE = ("q_proj", "down_proj", "up_proj")


def saved_lora(folder, kind="linear", dtype=torch.float32, **changes):
    """Saves a LoRA as if it had been trained; returns what the base model gives with it."""
    settings = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "down_proj"]}
    settings |= {"task_type": "CAUSAL_LM", "init_lora_weights": False}
    torch.manual_seed(5)
    model = get_peft_model(fresh(kind, dtype), LoraConfig(**settings | changes))
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            if "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    return outputs(model)


def counts(kind, targets):
    """2 experts in the first block and 3 in the second, but for one module without a router."""
    names = [name for name, _ in fresh(kind).named_modules() if name.endswith(tuple(targets))]
    return {
        name: 2 + int(block_name(name).rpartition(".")[2]) if name != names[0] else 1
        for name in names
    }


def started(folder, kind="linear", dtype=torch.float32, targets=MINE, **changes):
    settings = {"r": 4, "lora_alpha": 16, "task_type": "CAUSAL_LM", "init_from": str(folder)}
    if "target_modules" not in changes:
        settings["num_experts"] = counts(kind, targets)
    torch.manual_seed(7)
    return get_peft_model(fresh(kind, dtype), AlphaLoraConfig(**settings | changes)).eval()


def refused(folder, message, **changes):
    base = fresh("linear")
    settings = {"target_modules": ["q_proj", "down_proj"], "init_from": str(folder)} | changes
    with pytest.raises(ValueError, match=message):
        get_peft_model(base, AlphaLoraConfig(**settings))
    assert not layers(base)
