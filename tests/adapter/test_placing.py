"""Tensors of experts that PEFT casts, and whose base accelerate keeps elsewhere."""

import pytest
import torch
from accelerate import cpu_offload
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from helpers.kinds import adapted, assert_same, config, fresh, outputs, trainable

FIRST = "model.layers.0.self_attn.q_proj"


@pytest.mark.works("PEFT", "frozen adapters")
def test_on_a_half_precision_base_frozen_adapters_stay_frozen(tmp_path):
    """PEFT casts their tensors to fp32, and makes new ones of them."""
    model = get_peft_model(fresh("linear", torch.bfloat16), config("linear"))
    names = set(trainable(model))
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "loaded")
    model.load_adapter(tmp_path, "lean", low_cpu_mem_usage=True)
    model.add_adapter("new", config("linear"))
    assert set(trainable(model)) == names
    for options in ({}, {"low_cpu_mem_usage": True}):
        opened = PeftModel.from_pretrained(fresh("linear", torch.bfloat16), tmp_path, **options)
        assert not trainable(opened)
        assert {p.dtype for n, p in opened.named_parameters() if "alphalora" in n} == {
            torch.float32
        }
    frozen = config("linear", inference_mode=True)
    assert not trainable(get_peft_model(fresh("linear", torch.bfloat16), frozen))


@pytest.mark.works("PEFT", "a base that is offloaded to the CPU (not to disk)")
def test_experts_of_an_offloaded_base_are_kept_on_the_device(tmp_path):
    model, other = adapted("linear").eval(), adapted("linear", seed=4).eval()
    other.save_pretrained(tmp_path)
    expected = outputs(model)
    base = model.get_base_model()
    cpu_offload(base, execution_device=torch.device("cpu"))
    layer = dict(base.named_modules())[FIRST]
    assert layer.alphalora_A["default"].is_meta and layer.base_layer.weight.is_meta
    model.base_model._cast_adapter_dtype("default")  # as PEFT does at the end of loading
    assert not layer.alphalora_A["default"].is_meta and layer.base_layer.weight.is_meta
    assert_same(outputs(model), expected)
    model.load_adapter(tmp_path, "other")
    model.set_adapter("other")
    assert_same(outputs(model), outputs(other))
    new = get_peft_model(
        cpu_offload(fresh("linear"), execution_device=torch.device("cpu")), config("linear")
    )
    assert not any(p.is_meta for n, p in new.named_parameters() if "alphalora" in n)


@pytest.mark.refused("PEFT", "a base that is offloaded to disk")
def test_experts_of_a_layer_on_disk_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # PEFT writes to a relative path
    adapted("linear").save_pretrained(tmp_path / "adapter")
    fresh("linear").save_pretrained(tmp_path / "base")
    parts = ("embed_tokens", "norm", "rotary_emb", "layers.0")
    places = {"lm_head": "cpu", **{f"model.{part}": "cpu" for part in parts}}
    places |= {"model.layers.1": "disk"}
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", device_map=places, offload_folder=tmp_path / "offloaded"
    )
    with pytest.raises(ValueError, match="model.layers.1.*offloaded to disk.*device_map"):
        PeftModel.from_pretrained(
            base,
            tmp_path / "adapter",
            device_map={f"base_model.model.{name}": place for name, place in places.items()},
            offload_folder=tmp_path / "again",
        )
