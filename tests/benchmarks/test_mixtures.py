"""The loops over experts that benchmarks measure against compute what the stacked layer does."""

import copy

import pytest
import torch
from torch import nn

from axolotl_alphalora.adapter import AlphaLoraConfig, AlphaLoraLayer
from axolotl_alphalora.adapter.balance import LoadBalancer
from benchmarks.mixtures import DenseLoop, DispatchLoop, replace_layers


@pytest.mark.parametrize("kind", [DenseLoop, DispatchLoop])
@pytest.mark.parametrize(("number", "top_k"), [(1, 2), (2, 2), (5, 2), (5, 1), (7, 3)])
def test_values_and_gradients_are_those_of_the_stacked_experts(kind, number, top_k):
    torch.manual_seed(0)
    config = AlphaLoraConfig(num_experts=number, top_k=top_k, r=3, init_weights=False)
    layer = AlphaLoraLayer(nn.Linear(13, 11), "default", config, number, 3, "m", LoadBalancer())
    model = replace_layers(nn.Sequential(copy.deepcopy(layer)), kind, dropout=0.0)
    x = torch.randn(2, 9, 13)
    outputs, gradients = [], []
    for module in (layer, model):
        mine = x.clone().requires_grad_()
        out = module(mine)
        out.square().sum().backward()
        outputs.append(out)
        gradients.append(mine.grad)
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(gradients[1], gradients[0])
    loop = model[0]
    down = torch.cat([part.grad for part in loop.down])
    torch.testing.assert_close(down, layer.alphalora_A["default"].grad)
    up = torch.cat([part.grad for part in loop.up], 1)
    torch.testing.assert_close(up, layer.alphalora_B["default"].grad)
    if number > 1:
        torch.testing.assert_close(loop.router.grad, layer.alphalora_router["default"].grad)
