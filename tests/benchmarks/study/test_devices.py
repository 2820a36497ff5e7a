"""Frozen layers that multiply in bf16: their values, their gradients, and what they leave alone."""

import pytest
import torch
from torch import nn

from benchmarks.study.bases import load
from benchmarks.study.devices import RoundedLinear, place
from benchmarks.study.methods import METHODS, Bench
from benchmarks.study.train import Recipe, backward, train


@pytest.fixture
def bench_of(tiny_base, make_bench):
    """Makes what methods are built on, loaded as for a device."""

    def make(device):
        plain = make_bench()
        return Bench(load(tiny_base, device)[0], plain.directory, plain.rows, plain.seed)

    return make


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_takes_bf16_and_gives_fp32(bias):
    torch.manual_seed(0)
    linear = nn.Linear(48, 32, bias=bias).requires_grad_(False)
    rounded = RoundedLinear.of(linear)
    x = torch.randn(2, 5, 48, requires_grad=True)
    grad = torch.randn(2, 5, 32)
    found = rounded(x)
    found.backward(grad)
    exact = linear(x.detach())
    assert found.dtype == x.grad.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0.02)
    assert not torch.equal(found, exact)
    torch.testing.assert_close(x.grad, grad @ linear.weight, rtol=0.02, atol=0.02)
    assert set(rounded.state_dict()) == set(linear.state_dict())


def test_all_frozen_linear_layers_but_the_head_are_rounded(tiny_base):
    model = load(tiny_base, "cpu-bf16")[0]
    linear = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    rounded = [module for module in model.modules() if isinstance(module, RoundedLinear)]
    assert list(linear) == ["lm_head"]
    assert len(rounded) == 7 * model.config.num_hidden_layers
    assert all(module.weight.dtype == torch.float32 for module in rounded)


@pytest.mark.parametrize("method", ["alphalora-hill", "sensitivity", "eva"])
def test_a_plan_is_that_of_fp32(bench_of, method):
    built = [METHODS[method](bench_of(device)) for device in ("cpu", "cpu-bf16")]
    plain, rounded = (one.model.peft_config["default"].num_experts for one in built)
    assert plain == rounded
    assert any(isinstance(module, RoundedLinear) for module in built[1].model.modules())


@pytest.mark.parametrize("method", ["lora-r8", "uniform", "alphalora-hill"])
def test_gradients_of_an_adapter_are_those_of_fp32_but_for_the_rounding(bench_of, method):
    found = {}
    for device in ("cpu", "cpu-bf16"):
        bench = bench_of(device)
        built = METHODS[method](bench)
        torch.manual_seed(1)
        for name, parameter in built.model.named_parameters():
            if parameter.requires_grad and ("alphalora_B" in name or "lora_B" in name):
                nn.init.normal_(parameter, std=0.02)
        loss = backward(built, bench.rows[:4], place(device))
        grads = [p.grad.flatten() for p in built.model.parameters() if p.grad is not None]
        found[device] = loss, torch.cat(grads)
    (exact, expected), (loss, gradient) = found["cpu"], found["cpu-bf16"]
    assert loss == pytest.approx(exact, rel=2e-3) and loss != exact
    assert torch.cosine_similarity(gradient, expected, dim=0) > 0.98


def test_a_run_gives_the_same_digits_again(bench_of):
    runs = []
    for _ in range(2):
        bench = bench_of("cpu-bf16")
        built = METHODS["uniform"](bench)
        runs.append(train(built, bench.rows, Recipe(batch=4), 1e-2, 3, "cpu"))
    assert runs[0] == runs[1]
    assert runs[0]["train_losses"][-1] < runs[0]["train_losses"][0]
