"""What stays in full precision under `load_in_4bit` and `load_in_8bit` is said at load."""

import logging

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from axolotl_alphalora.plugin.quantised_base import describe_unquantised
from helpers import settings

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
FAMILIES = {
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=4),
    "qwen3_moe": Qwen3MoeConfig(
        **SHAPE, head_dim=16, num_experts=4, moe_intermediate_size=16, mlp_only_layers=[0]
    ),
    "llama": LlamaConfig(**SHAPE),
}


def load(family, folder, bits=None, dtype=torch.bfloat16) -> PreTrainedModel:
    AutoModelForCausalLM.from_config(FAMILIES[family]).save_pretrained(folder)
    config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True}) if bits else None
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=config)


@pytest.mark.works("Quantised bases", "stacked experts that stay unquantised are named at load")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("family", "dtype", "blocks"),
    [("mixtral", torch.bfloat16, 24), ("qwen3_moe", torch.float32, 23)],
)
def test_stacked_experts_are_counted_and_measured(family, dtype, blocks, bits, tmp_path):
    model = load(family, tmp_path, bits, dtype)
    left = {name: p for name, p in model.named_parameters() if "experts." in name}
    size = sum(parameter.nbytes for parameter in left.values())
    text = describe_unquantised(model)
    assert len(left) == 2 * blocks
    for words in (
        f"{len(left)} stacked weights",
        f"stay in {str(dtype).removeprefix('torch.')}",
        f"{sum(p.numel() for p in left.values()):,} parameters",
        f"{size / 2**30:.2f} GiB, {next(iter(left))} first",
        "`adapter: qlora`",
    ):
        assert words in text


def test_a_size_is_in_gib(tmp_path):
    model = load("mixtral", tmp_path, bits=4)
    model.model.layers[0].mlp.experts.gate_up_proj = nn.Parameter(
        torch.empty(128, 2048, 4096, dtype=torch.bfloat16, device="meta"), requires_grad=False
    )
    assert "2.00 GiB" in describe_unquantised(model)


def test_a_weight_that_zero3_has_partitioned_counts_whole(tmp_path):
    model = load("mixtral", tmp_path, bits=4)
    whole = describe_unquantised(model)
    for name, parameter in model.named_parameters():
        if "experts." in name:
            parameter.ds_shape = parameter.shape
            parameter.data = torch.empty(0, dtype=parameter.dtype)
    assert describe_unquantised(model) == whole


@pytest.mark.parametrize(("family", "bits"), [("llama", 4), ("mixtral", None)])
def test_nothing_is_said_where_nothing_is_left(family, bits, tmp_path):
    assert describe_unquantised(load(family, tmp_path, bits)) is None


def test_the_run_s_log_says_so(tmp_path, monkeypatch, caplog):
    plugin = settings.register(monkeypatch)
    model = load("mixtral", tmp_path, bits=8)
    cfg = settings.validate(base_model=str(tmp_path), load_in_8bit=True)
    monkeypatch.setattr(logging.getLogger("axolotl_alphalora"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        plugin.post_model_build(cfg, model)
    assert "48 stacked weights of the base" in caplog.text
