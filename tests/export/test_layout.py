"""What a server reads that knows one rank and one alpha."""

import copy
import json

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from axolotl_alphalora.export import export_adapter
from helpers.balancing import adapted
from helpers.exporting import rows


@pytest.mark.parametrize(
    "options",
    [{}, {"method": "mean-gate"}, {"rank": 5}, {"same_rank": True}, {"rank": 4, "same_rank": True}],
    ids=str,
)
def test_the_scale_is_right_without_the_patterns(tiny_llama, tmp_path, options):
    """Older vLLMs read neither, and scale every layer by lora_alpha / r."""
    model = adapted(tiny_llama).eval()
    model.save_pretrained(tmp_path / "adapter")
    export_adapter(
        model,
        tmp_path / "adapter",
        tmp_path / "lora",
        calibration=rows(2, 1),
        held_out=rows(1, 2),
        **options,
    )
    settings = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert settings["lora_alpha"] == settings["r"] and not settings["use_rslora"]
    assert settings["alpha_pattern"] == settings["rank_pattern"]
    assert bool(settings["rank_pattern"]) == ("same_rank" not in options)
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    lora = PeftModel.from_pretrained(copy.deepcopy(tiny_llama), tmp_path / "lora")
    layers = {name: each for name, each in lora.named_modules() if isinstance(each, LoraLayer)}
    assert len(layers) == 13
    for name, layer in layers.items():
        a, b = (tensors[f"{name}.lora_{part}.weight"] for part in "AB")
        update = settings["lora_alpha"] / settings["r"] * b @ a
        torch.testing.assert_close(update, layer.get_delta_weight("default"), msg=name)
