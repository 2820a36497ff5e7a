"""Segments, shares, low-rank routers and a shared A: every path against a plain loop."""

import pytest
import torch
from torch import nn

import axolotl_alphalora.adapter.fused as fused
from axolotl_alphalora.adapter import AlphaLoraConfig, AlphaLoraLayer
from axolotl_alphalora.adapter.balance import LoadBalancer
from axolotl_alphalora.adapter.batch import Padding
from axolotl_alphalora.adapter.fused import keep_mask, using
from helpers import reference
from helpers.balancing import (
    CHECKPOINTING,
    adapted,
    assert_same,
    gradients,
    reference_gradients,
    switch_checkpointing,
)
from helpers.fusing import IN, OUT, assert_equal, make, run
from helpers.mixtures import COMBINATIONS, EVERYTHING, named

every_mixture = pytest.mark.parametrize("options", COMBINATIONS, ids=named)


def tensors(layer):
    parts = {"a": "A", "b": "B", "router": "router", "router_down": "router_down"}
    found = {short: getattr(layer, f"alphalora_{name}") for short, name in parts.items()}
    return {name: part.get("default") for name, part in found.items()}


def planned(options, number, rank):
    """What a layer of so many planned experts computes with, written out once more."""
    m, k = options.get("segments", 1), options["top_k"]
    active = min(k, number) if isinstance(k, int) else max(1, int(k * number + 0.5))
    scaling = m * 16 / rank  # lora_alpha is 16
    return {"num_experts": m * number, "rank": rank // m, "top_k": m * active, "scaling": scaling}


def plain_loop(layer, x, shape, mask=None):
    """Output and gradients by the loop, with the load-balancing loss of `make`'s pass."""
    x = x.detach().clone().requires_grad_()
    parts = tensors(layer)
    seen = x if mask is None else x * mask
    out = layer.base_layer(x) + reference.expert_mixture(seen, **parts, **shape, routed=x)
    upstream = torch.linspace(-1, 1, out.numel()).view(out.shape)
    total = (out * upstream).sum()
    if shape["num_experts"] > 1:
        real = layer.balancer.passes.now.padding.own
        real = torch.ones(x.shape[:-1]) if real is None else real
        routers = (parts["router"], parts["router_down"])
        loss = reference.load_balancing(x, *routers, top_k=shape["top_k"], mask=real)
        total = total + 0.6 * layer.aux_loss_coef["default"] * loss
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    return [out.detach(), *torch.autograd.grad(total, wanted)]


@every_mixture
@pytest.mark.parametrize("number", [1, 3, 7])
@pytest.mark.parametrize("padding", [False, True])
def test_values_and_gradients_are_those_of_a_plain_loop(options, number, padding):
    layer, x = make(number, rank=4, padding=padding, **options)
    layer.balancer.scale.default = 1.0
    want = plain_loop(layer, x, planned(options, number, 4))
    for function in (True, False):
        assert_equal(run(layer, x, function), want)
    layer.balancer.passes.now.phase = None
    layer.eval()
    with torch.no_grad():
        assert_equal([layer(x)], want[:1])


@every_mixture
def test_dropout_is_on_the_experts_input_alone(options, monkeypatch):
    layer, x = make(dropout=0.4, rank=4, **options)
    layer.balancer.scale.default = 1.0
    drawn = []
    monkeypatch.setattr(fused, "keep_mask", lambda *a: drawn.append(keep_mask(*a)) or drawn[-1])
    got = run(layer, x, True)
    mask = (drawn[0].float() / 0.6).view(x.shape)
    assert_equal(got, plain_loop(layer, x, planned(options, 5, 4), mask))

    class Fixed(nn.Module):
        def forward(self, x):
            return x * mask

    layer.alphalora_dropout["default"] = Fixed()
    assert_equal(got, run(layer, x, False))


@every_mixture
def test_tensors_are_those_that_the_budget_counts(options):
    for number in (1, 4):
        config = AlphaLoraConfig(r=4, num_experts=number, **options)
        base = nn.Linear(IN, OUT, bias=False)
        layer = AlphaLoraLayer(base, "default", config, number, 4, "m", LoadBalancer())
        shapes = {
            name: tuple(part["default"].shape)
            for name in layer.adapter_layer_names
            if "default" in (part := getattr(layer, name))
        }
        assert shapes == config.mixture.tensors(IN, OUT, number, 4)
        counted = sum(p.numel() for p in layer.parameters() if p is not base.weight)
        assert counted == config.mixture.parameters(IN, OUT, number, 4)
        x = torch.randn(3, IN)
        torch.testing.assert_close(layer(x), base(x), rtol=0, atol=0)


@pytest.mark.usefixtures("combinations")
@every_mixture
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_and_on_a_base_in_bf16(options, dtype):
    layer, x = make(base=nn.Linear(IN, OUT, bias=False).to(dtype), rank=4, rows=300, **options)
    layer.balancer.scale.default = 1.0
    for name, parameter in layer.named_parameters():
        if "alphalora" in name:
            parameter.data = parameter.data.float()
    if "default" in layer.alphalora_router:
        layer.alphalora_router["default"].data *= 8  # so that experts differ
    x = clear_tokens(layer, x)
    assert x.shape[1] > 10
    rows = x.shape[1]
    layer.balancer.passes.now.padding = Padding(torch.rand(2, rows) > 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = run(layer, x.to(dtype), True), run(layer, x.to(dtype), False)
    loop = plain_loop(layer.float(), x.to(dtype).float(), planned(options, 5, 4))
    for one, other, exact in zip(got, want, loop, strict=True):
        assert one.dtype == other.dtype
        size = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=2e-2 * size)
        torch.testing.assert_close(one.float(), exact, rtol=0, atol=6e-2 * size)


def clear_tokens(layer, x):
    """The tokens, as many in each row, for which rounding changes no choice of experts."""
    seen = x if "default" not in layer.alphalora_router_down else x @ _t(layer, "router_down")
    logits = (seen @ _t(layer, "router")).sort(-1).values
    gap = logits[..., -layer.top_k["default"]] - logits[..., -layer.top_k["default"] - 1]
    clear = gap > 0.1
    rows = int(clear.sum(-1).min())
    return torch.stack([each[real][:rows] for each, real in zip(x, clear, strict=True)])


def _t(layer, part):
    return getattr(layer, f"alphalora_{part}")["default"].detach().float().T


@pytest.mark.parametrize("frozen", ["A", "B", "router", "router_down"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_part_that_is_frozen_changes_nothing_for_the_others(frozen, dropout):
    layer, x = make(rank=4, dropout=dropout, **EVERYTHING)
    getattr(layer, f"alphalora_{frozen}")["default"].requires_grad_(False)
    torch.manual_seed(1)
    got = run(layer, x, True)
    getattr(layer, f"alphalora_{frozen}")["default"].requires_grad_(True)
    torch.manual_seed(1)
    all_of_them = run(layer, x, True)
    places = {"A": 2, "B": 3, "router": 4, "router_down": 5}
    del all_of_them[places[frozen]]
    assert_equal(got, all_of_them)


def test_segments_keep_the_function_where_all_gates_are_equal():
    """Total rank, and so lora_alpha / (r k) of a rank-one part, stay what the plan says."""
    found, x = [], torch.randn(2, 9, IN)
    for segments in (1, 2, 4):
        layer, _ = make(5, top_k=5, rank=4, coefficient=0.0, segments=segments)
        layer.alphalora_router["default"].data.zero_()
        torch.manual_seed(4)
        for part in "AB":
            nn.init.normal_(getattr(layer, f"alphalora_{part}")["default"])
        found.append(layer(x).detach())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


@every_mixture
def test_what_is_kept_is_no_more_than_the_experts_are_wide(options):
    """The input, once; a byte for dropout; A's hidden states, logits or [T, R], and choices."""
    layer, x = make(rank=4, rows=500, padding=False, dropout=0.1, **options)
    x = x.requires_grad_()
    weights = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = layer(x)
    number = layer.num_experts["default"]
    hidden = len(layer.alphalora_A["default"])
    width = 4 * (hidden + (options["router_rank"] or number)) + number + IN
    assert sum(kept.values()) <= 1000 * (4 * IN + width) + 4 * (5 * number + 3)
    del out


@pytest.mark.parametrize("mode", CHECKPOINTING)
def test_the_loss_of_a_model_is_balanced_as_by_hand(tiny_llama, batch, mode):
    model = adapted(tiny_llama, **EVERYTHING)
    switch_checkpointing(model, mode)
    model.train()(**batch).loss.backward()
    want = reference_gradients(tiny_llama, [batch], [1.0], **EVERYTHING)
    assert_same(gradients(model), want)


def test_all_switches_of_the_plain_twin_reach_the_new_parts():
    layer, x = make(rank=4, **EVERYTHING)
    with using(function=False):
        layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters() if p.requires_grad)
