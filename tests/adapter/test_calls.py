"""Layers that a training pass leaves out are named."""

import warnings

import pytest
import torch
from peft import get_peft_model

from axolotl_alphalora.adapter import AlphaLoraConfig, find_balancer
from helpers.balancing import adapted


class Idle(torch.nn.Module):
    """One layer is called, of another the weight is read."""

    def __init__(self):
        super().__init__()
        self.called, self.read = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def forward(self, x):
        return torch.nn.functional.linear(self.called(x), self.read.weight)


@pytest.mark.works("Robustness", "adapted layers that never run are named")
@pytest.mark.parametrize("experts", [1, 3])
def test_layers_that_did_not_run_are_named_after_the_first_training_pass(experts):
    config = AlphaLoraConfig(r=2, num_experts=experts, target_modules=["called", "read"])
    model, x = get_peft_model(Idle(), config), torch.randn(4, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.eval()(x)
    with pytest.warns(UserWarning, match="1 of 2 adapted layers did not run .*: read. The model"):
        model.train()(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)


def test_a_head_that_is_read_beside_the_backbone_is_named(tiny_llama, batch):
    config = AlphaLoraConfig(r=2, num_experts=2, target_modules=["q_proj", "lm_head"])
    model = get_peft_model(tiny_llama, config).train()
    with model.disable_adapter(), warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**batch)
    base = model.get_base_model()
    base.model(batch["input_ids"])[0] @ base.lm_head.weight.T
    with pytest.warns(UserWarning, match="1 of 3 adapted layers did not run .*: lm_head"):
        find_balancer(model).calls.name_idle(model)


def test_where_all_layers_run_none_is_named(tiny_llama, batch):
    model = adapted(tiny_llama).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**batch).loss.backward()
