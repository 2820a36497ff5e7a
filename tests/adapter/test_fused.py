"""The fused path against plain operators and autograd: values, gradients, what is kept."""

import copy
import itertools

import pytest
import torch
from torch import nn

import axolotl_alphalora.adapter.fused as fused
from axolotl_alphalora.adapter import AlphaLoraConfig, AlphaLoraLayer
from axolotl_alphalora.adapter.balance import LoadBalancer
from axolotl_alphalora.adapter.batch import Padding
from axolotl_alphalora.adapter.fused import FusedPaths, fused_paths, keep_mask, using
from helpers.balancing import CHECKPOINTING, adapted, gradients, switch_checkpointing
from helpers.fusing import IN, OUT, assert_equal, make, run

COUNTS = [(1, 1), (2, 1), (2, 2), (3, 2), (5, 1), (5, 2), (5, 5), (9, 4), (17, 2)]


@pytest.mark.works(
    "Memory and speed", "fused experts, or plain ones with `ALPHALORA_FUSED=0`", "equal to 1e-5"
)
@pytest.mark.parametrize(("number", "top_k"), COUNTS)
@pytest.mark.parametrize("rank", [1, 8])
@pytest.mark.parametrize("rows", [0, 1, 65])
def test_it_computes_what_plain_operators_do(number, top_k, rank, rows):
    for padding, coefficient in itertools.product((True, False), (0.0, 0.7)):
        layer, x = make(number, top_k, rank, coefficient=coefficient, padding=padding, rows=rows)
        assert_equal(run(layer, x, True), run(layer, x, False))


def assert_near(got, want, tolerance):
    """Equal to within a share of each tensor's own largest value."""
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * float(other.abs().max()))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_the_precisions_of_training(dtype, autocast):
    """Experts are fp32, as PEFT keeps them; the base is not, or autocast decides."""
    layer, x = make(base=nn.Linear(IN, OUT, bias=False).to(dtype), coefficient=900.0, rows=200)
    for name, parameter in layer.named_parameters():
        if "alphalora" in name:
            parameter.data = parameter.data.float()
    # Tokens for which rounding changes no choice.
    logits = (x @ layer.alphalora_router["default"].T).sort(-1).values
    clear = logits.diff(dim=-1).amin(-1) > 0.03
    rows = int(clear.sum(-1).min())
    assert rows > 20
    x = torch.stack([each[real][:rows] for each, real in zip(x, clear, strict=True)]).to(dtype)
    layer.balancer.passes.now.padding = Padding(torch.rand(2, rows) > 0.3)
    tolerance = 1e-5 if dtype == torch.float32 and not autocast else 2e-2
    found = {}
    for coefficient in (900.0, 0.0):
        layer.aux_loss_coef["default"] = coefficient
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found[coefficient] = run(layer, x, True)
            assert_near(found[coefficient], run(layer, x, False), tolerance)
    assert all(grad.dtype == torch.float32 for grad in found[0.0][2:])
    router, without = found[900.0][-1], found[0.0][-1]
    assert (router - without).abs().max() > 0.2 * router.abs().max(), "the loss must matter here"


def test_statistics_are_counted_in_fp32_under_autocast():
    layer, x = make(number=3, rows=300, padding=True)
    for function in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            run(layer, x, function)
        sums = layer.balancer.passes.now.decisions["m.default"][0].sums
        tokens = int(layer.balancer.passes.now.padding.own.sum())
        assert tokens > 256  # which bf16 could not count
        assert sums[-1] == tokens and sums[:3].sum() == 2 * tokens


@pytest.mark.parametrize("number", [1, 5])
def test_dropout_is_a_mask_of_the_experts_input_and_the_router_never_sees_it(number, monkeypatch):
    layer, x = make(number, dropout=0.4, coefficient=0.0)
    drawn = []
    monkeypatch.setattr(fused, "keep_mask", lambda *a: drawn.append(keep_mask(*a)) or drawn[-1])
    got = run(layer, x, True)
    mask = (drawn[0].float() / 0.6).view(x.shape)
    assert len(drawn) == 1 and 0.4 < drawn[0].float().mean() < 0.8

    class Fixed(nn.Module):
        def forward(self, x):
            return x * mask

    layer.alphalora_dropout["default"] = Fixed()
    assert_equal(got, run(layer, x, False))


@pytest.mark.parametrize("p", [0.001, 0.05, 0.5, 0.99, 0.999])
def test_the_mask_is_as_random_as_it_says(p):
    torch.manual_seed(0)
    x = torch.empty(4000, 333)
    mask = keep_mask(x, p).float()
    assert mask.unique().tolist() == [0, 1]
    sigma = (p * (1 - p)) ** 0.5
    assert abs(mask.mean() - (1 - p)) < 5 * sigma / x.numel() ** 0.5
    # Places of a random word, and columns, are all alike; neighbours are independent, but for what
    # a row shares.
    for alike in (mask.view(-1)[: x.numel() // 8 * 8].view(-1, 8), mask):
        assert (abs(alike.mean(0) - (1 - p)) < 6 * sigma / len(alike) ** 0.5).all()
    for lag in (1, 2, 3, 8, 333):
        one, other = mask.view(-1)[lag:] - (1 - p), mask.view(-1)[:-lag] - (1 - p)
        assert abs((one * other).mean()) < 6 * sigma**2 / x.numel() ** 0.5 + 1 / (4 * 256**2)
    assert not torch.equal(keep_mask(x, p), keep_mask(x, p))


def test_the_mask_does_not_depend_on_the_default_dtype_or_device():
    torch.manual_seed(0)
    want = keep_mask(torch.empty(3000, 100), 0.9)
    assert abs(want.float().mean() - 0.1) < 2e-3
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        x = torch.empty(3000, 100)
        torch.manual_seed(0)
        with torch.device("meta"):
            assert torch.equal(keep_mask(x, 0.9), want)
    finally:
        torch.set_default_dtype(before)
    assert keep_mask(torch.empty(0, 7), 0.5).shape == (0, 7)


@pytest.mark.parametrize("mode", CHECKPOINTING)
def test_recomputation_drops_the_same_elements(tiny_llama, batch, mode):
    found = []
    for checkpointed in ("none", mode):
        model = adapted(tiny_llama, lora_dropout=0.3)
        switch_checkpointing(model, checkpointed)
        model.train()
        torch.manual_seed(5)
        loss = model(**batch).loss
        loss.backward()
        found.append((loss.detach(), gradients(model)))
    (loss, plain), (again, recomputed) = found
    torch.testing.assert_close(again, loss, rtol=0, atol=0)
    for name, grad in plain.items():
        torch.testing.assert_close(recomputed[name], grad, rtol=1e-5, atol=1e-7)


def test_the_mask_and_the_weight_may_be_on_another_device():
    """As in a model on several devices, whose inputs are on the first."""
    layer, x = make()
    layer.to("meta")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = layer(x.to("meta").requires_grad_())
    assert len(kept) > 5 and all(tensor.is_meta for tensor in kept)
    out.sum().backward()
    assert layer.alphalora_router["default"].grad.is_meta


def test_autocast_leaves_double_precision_alone():
    layer, x = make(base=nn.Linear(IN, OUT, bias=False).double())
    with torch.autocast("cpu", torch.bfloat16):
        got, want = run(layer, x.double(), True), run(layer, x.double(), False)
    assert got[0].dtype == torch.float64
    assert_equal(got, want)


def test_dropout_that_is_kept_on_in_evaluation_drops():
    layer, x = make(dropout=0.5)
    layer.balancer.passes.now.phase = None
    layer.eval()
    with torch.no_grad():
        assert torch.equal(layer(x), layer(x))
        layer.alphalora_dropout.train()
        assert not torch.equal(layer(x), layer(x))


def test_a_dropout_of_the_user_s_own_is_used():
    layer, x = make()
    layer.alphalora_dropout["default"] = nn.AlphaDropout(0.5)
    assert not torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("frozen", ["alphalora_A", "alphalora_B", "alphalora_router"])
def test_a_part_that_is_frozen_gets_no_gradient_and_changes_nothing_for_the_others(frozen):
    layer, x = make(dropout=0.0)
    getattr(layer, frozen)["default"].requires_grad_(False)
    assert_equal(run(layer, x, True), run(layer, x, False))


def test_an_input_without_a_gradient():
    layer, x = make()
    results = []
    for function in (True, False):
        layer.zero_grad()
        with using(function=function):
            layer(x).square().sum().backward()
        results.append([p.grad.clone() for p in layer.parameters() if p.requires_grad])
    assert_equal(*results)


def test_two_active_adapters_add_up():
    layer, x = make()
    layer.update_layer("other", AlphaLoraConfig(r=2, top_k=1, init_weights=False), 3, 2)
    layer.set_adapter(["default", "other"])
    assert_equal(run(layer, x, True), run(layer, x, False))


def test_what_is_kept_is_the_input_once_a_byte_for_dropout_and_what_the_experts_are_wide():
    rows, width, number, rank = 64, 96, 5, 8
    x = torch.randn(2, rows, width, requires_grad=True)
    config = AlphaLoraConfig(num_experts=number, r=rank, lora_dropout=0.1)
    layers = [
        AlphaLoraLayer(
            nn.Linear(width, 4 * width, bias=False), "default", config, number, rank, n,
            LoadBalancer(),
        ).train()
        for n in "qkv"
    ]  # fmt: skip
    weights = {p.untyped_storage().data_ptr() for la in layers for p in la.parameters()}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        outputs = [layer(x) for layer in layers]
    a_layer = width + 4 * number * rank + 5 * number  # mask, hidden states, logits and choices
    expected = 2 * rows * (4 * width + 3 * a_layer)
    assert sum(found.values()) <= expected + 3 * 4 * (4 * number + 2 + 1)
    del outputs


def test_a_second_derivative_is_refused():
    layer, x = make()
    x.requires_grad_()
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_the_switches_are_read_from_the_environment_and_restored(monkeypatch):

    assert fused_paths() == FusedPaths(function=True, triton=False)
    with using(function=False):
        assert not fused_paths().function
    assert fused_paths().function
    monkeypatch.setenv("ALPHALORA_FUSED", "0")
    monkeypatch.setenv("ALPHALORA_TRITON", "1")
    assert fused._from_environment() == FusedPaths(function=False, triton=True)
    monkeypatch.setenv("ALPHALORA_FUSED", "maybe")
    with pytest.raises(ValueError, match="ALPHALORA_FUSED must be 0 or 1, not 'maybe'"):
        fused._from_environment()


def test_the_switch_reaches_the_layer(monkeypatch):
    layer, x = make()
    monkeypatch.setattr(
        "axolotl_alphalora.adapter.layer.add_experts", lambda *a, **k: pytest.fail("fused")
    )
    with using(function=False):
        copy.deepcopy(layer)(x)
    with pytest.raises(pytest.fail.Exception):
        layer(x)
