"""One adapted layer against a plain loop over tokens and experts, values and gradients."""

import bitsandbytes as bnb
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from axolotl_alphalora.adapter import AlphaLoraConfig, AlphaLoraLayer
from axolotl_alphalora.adapter.balance import LoadBalancer
from helpers import reference

IN, OUT, RANK = 64, 96, 3
COUNTS = [(n, k) for n in range(1, 9) for k in range(1, n + 1)]


def _base(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "conv1d":
        return Conv1D(OUT, IN)
    if kind == "4bit":
        layer = bnb.nn.Linear4bit(IN, OUT, bias=False, compute_dtype=torch.float32)
        layer.load_state_dict({"weight": torch.randn(OUT, IN) / 8})
        return layer.to("cpu")
    if kind == "8bit":
        layer = bnb.nn.Linear8bitLt(IN, OUT, bias=False, has_fp16_weights=False)
        layer.load_state_dict({"weight": torch.randn(OUT, IN) / 8})
        return layer.to("cpu")
    return nn.Linear(IN, OUT).to(torch.bfloat16 if kind == "bf16" else torch.float32)


def _layer(kind: str, num_experts: int, top_k: int, **config) -> AlphaLoraLayer:
    settings = AlphaLoraConfig(
        r=RANK,
        lora_alpha=5,
        top_k=top_k,
        num_experts=num_experts,
        target_modules=["x"],
        init_weights=False,
        **config,
    )
    return AlphaLoraLayer(_base(kind), "default", settings, num_experts, RANK, "x", LoadBalancer())


def _parameters(layer: AlphaLoraLayer) -> dict[str, torch.Tensor | None]:
    return {
        "a": layer.alphalora_A["default"],
        "b": layer.alphalora_B["default"],
        "router": layer.alphalora_router["default"] if layer.alphalora_router else None,
    }


def _without_ties(shape, dtype, router) -> torch.Tensor:
    """Inputs for which no two experts are equally good: bf16 logits often are, to the bit."""
    while True:
        x = torch.randn(shape, dtype=dtype)
        if router is None:
            return x
        logits = (x @ router.T).float().sort(-1).values
        if (logits.diff(dim=-1) > 2e-2).all() or router.dtype != torch.bfloat16:
            return x


@pytest.mark.parametrize("kind", ["fp32", "conv1d", "bf16", "4bit", "8bit"])
@pytest.mark.parametrize("shape", [(3, IN), (2, 2, IN)], ids=["2d", "3d"])
@pytest.mark.parametrize(("num_experts", "top_k"), COUNTS)
def test_forward_and_gradients_equal_a_plain_loop(kind, shape, num_experts, top_k):
    layer = _layer(kind, num_experts, top_k)
    parameters = _parameters(layer)
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    x = _without_ties(shape, dtype, parameters["router"]).requires_grad_()
    upstream = torch.randn(*shape[:-1], OUT, dtype=dtype)
    inputs = [x] + [p for p in parameters.values() if p is not None]

    out = layer(x)
    grads = torch.autograd.grad(out, inputs, upstream)
    expected = layer.base_layer(x) + reference.expert_mixture(
        x, **parameters, num_experts=num_experts, rank=RANK, top_k=top_k, scaling=5 / RANK
    )
    expected_grads = torch.autograd.grad(expected, inputs, upstream)

    # bf16 keeps 8 bits, and the two sum in another order.
    tolerance = 2e-2 if kind == "bf16" else 1e-5
    for got, want in zip((out, *grads), (expected, *expected_grads), strict=True):
        scale = max(float(want.detach().abs().max()), 1.0)
        torch.testing.assert_close(got / scale, want / scale, rtol=0, atol=tolerance)


def test_one_expert_is_a_plain_lora_without_a_router():
    layer = _layer("fp32", 1, 2)
    assert len(layer.alphalora_router) == 0
    x = torch.randn(4, IN)
    a, b = layer.alphalora_A["default"], layer.alphalora_B["default"]
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 5 / RANK * (x @ a.T @ b.T))


def test_a_new_layer_does_not_change_the_base():
    config = AlphaLoraConfig(num_experts=3, target_modules=["x"])
    layer = AlphaLoraLayer(_base("fp32"), "default", config, 3, 8, "x", LoadBalancer())
    x = torch.randn(4, IN)
    torch.testing.assert_close(layer(x), layer.base_layer(x), rtol=0, atol=0)
    assert layer.alphalora_A["default"].abs().sum() > 0


def test_every_expert_takes_part_in_autograd_even_without_a_token():
    layer = _layer("fp32", 8, 1)
    layer(torch.randn(1, IN)).sum().backward()
    assert all(p.grad is not None for p in _parameters(layer).values())


def test_rank_stabilised_scaling():
    assert AlphaLoraConfig(lora_alpha=8, use_rslora=True).scaling(16) == 2.0
    assert AlphaLoraConfig(lora_alpha=8).scaling(16) == 0.5


def test_under_autocast_the_result_keeps_the_base_dtype():
    layer = _layer("bf16", 4, 2).float()
    layer.base_layer.bfloat16()
    out = layer(torch.randn(3, IN, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert layer.alphalora_A["default"].dtype == torch.float32


def test_merging_is_refused_with_the_reason():
    with pytest.raises(NotImplementedError, match="router chooses and weighs"):
        _layer("fp32", 2, 1).merge()
