"""Experts and a plain LoRA in one model."""

import copy

import pytest
import torch
from peft import (
    LoraConfig,
    get_peft_model,
)

from helpers.kinds import (
    X,
    adapted,
    assert_same,
    config,
    forward,
    fresh,
    outputs,
    trainable,
)


def lora(**changes):
    settings = {"r": 4, "target_modules": ["q_proj", "k_proj"], "task_type": "CAUSAL_LM"}
    return LoraConfig(**(settings | {"init_lora_weights": False} | changes))


@pytest.mark.refused("PEFT", "another method's adapter in the same PeftModel")
def test_a_lora_adapter_is_not_added_to_the_same_peft_model():
    model = adapted("linear")
    with pytest.raises(ValueError, match="different peft types. Found .*ALPHALORA and .*LORA"):
        model.add_adapter("other", lora())
    assert list(model.peft_config) == ["default"]


@pytest.mark.works("PEFT", "LoRA in the same base model", "beneath or on top")
@pytest.mark.parametrize("on_top", [True, False], ids=["LoRA on top", "LoRA beneath"])
def test_lora_and_experts_in_one_base_model_add_up(on_top):
    base, x = fresh("linear"), X[0]
    before, plain = outputs(base), copy.deepcopy(base.model.layers[0].self_attn.q_proj)
    order = [config("linear"), lora()] if on_top else [lora(), config("linear")]
    get_peft_model(base, order[0], "first")
    outer = base.model.layers[0].self_attn.q_proj(x)
    model = get_peft_model(base, order[1], "second")
    layer = base.model.layers[0].self_attn.q_proj
    lower, upper = outer - plain(x), layer(x) - outer
    assert lower.abs().max() > 1e-3 and upper.abs().max() > 1e-3
    assert_same(layer.base_layer(x), outer)
    assert {"alphalora_" in name for name in trainable(model)} == {True, False}
    model.train()
    model(input_ids=torch.tensor([[4, 5, 6]]), labels=torch.tensor([[4, 5, 6]])).loss.backward()
    assert all(p.grad is not None for p in trainable(model).values())
    assert_same(outputs(model.unload()), before)


def test_experts_are_balanced_on_a_base_that_lora_has_unloaded():
    def gradients(base):
        model = get_peft_model(base, config("linear", aux_loss_coef=0.5)).train()
        forward(model)[1].backward()
        return {name: p.grad for name, p in trainable(model).items()}

    base = fresh("linear")
    get_peft_model(base, config("linear"))
    base = get_peft_model(base, lora(), "other").unload()
    torch.manual_seed(3)
    got = gradients(base)
    torch.manual_seed(3)
    for name, want in gradients(fresh("linear")).items():
        assert_same(got[name], want, atol=1e-6)
