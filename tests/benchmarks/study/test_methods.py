"""Every method of the table builds, with the parameters that it is to have."""

import pytest
import torch

from axolotl_alphalora.adapter import AlphaLoraLayer
from axolotl_alphalora.mixture import Mixture
from benchmarks.study.cells import EQUALS
from benchmarks.study.methods import EXPERTS, METHODS, RANK, SCALE, linear_shapes, why_not
from benchmarks.study.train import backward

LORAS = {"lora-r8": 8, "lora-r16": 16, "lora-r40": 40, "rslora-r40": 40}
SHAPES = {
    "uniform": Mixture(),
    "uniform-seg4": Mixture(segments=4),
    "uniform-seg8": Mixture(segments=8),
    "share-a": Mixture(share_a=True),
    "router-rank16": Mixture(router_rank=16),
    "dense": Mixture(top_k=EXPERTS),
}
BUILT = [name for name in METHODS if name not in ("untrained", "mixlora")]


def trained(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def build(bench, method):
    reason = why_not(method)
    if reason is not None:
        pytest.skip(reason)
    return METHODS[method](bench)


def parameters(shapes, mixture, planned=EXPERTS):
    return sum(mixture.parameters(inside, out, planned, RANK) for out, inside in shapes)


@pytest.mark.parametrize("method", LORAS)
def test_a_lora_has_its_rank(make_bench, method):
    bench = make_bench()
    shapes = linear_shapes(bench)
    assert trained(build(bench, method).model) == LORAS[method] * sum(map(sum, shapes))


@pytest.mark.parametrize(("shape", "method"), EQUALS)
def test_the_equal_lora_comes_nearest_to_its_mixture(make_bench, shape, method):
    bench = make_bench()
    shapes = linear_shapes(bench)
    built = build(bench, method)
    wanted = parameters(shapes, SHAPES[shape])
    assert abs(trained(built.model) - wanted) <= sum(map(sum, shapes)) / 2
    assert built.facts["rank"] > EXPERTS * RANK or shape == "share-a"


@pytest.mark.parametrize("method", SHAPES)
def test_a_mixture_has_its_shape(make_bench, method):
    bench = make_bench()
    shapes = linear_shapes(bench)
    model = build(bench, method).model
    mixture = SHAPES[method]
    assert trained(model) == parameters(shapes, mixture)
    layers = [module for module in model.modules() if isinstance(module, AlphaLoraLayer)]
    assert len(layers) == len(shapes)
    for layer in layers:
        assert layer.num_experts["default"] == mixture.experts(EXPERTS)
        assert layer.top_k["default"] == mixture.active(EXPERTS)
        assert layer.scaling["default"] == SCALE * mixture.segments


@pytest.mark.usefixtures("combinations")
@pytest.mark.parametrize("method", BUILT)
def test_it_builds_starts_as_the_base_and_learns(make_bench, method):
    bench = make_bench()
    ids = torch.tensor([bench.rows[0].ids])
    with torch.no_grad():
        expected = bench.model(input_ids=ids).logits
    built = build(bench, method)
    with torch.no_grad():
        assert torch.allclose(built.model(input_ids=ids).logits, expected, atol=1e-6)
    built.model.train()
    backward(built, bench.rows[:2], "cpu")
    assert all("router" in n or p.grad is not None for n, p in _named(built.model))
    assert any(p.grad is not None and p.grad.any() for _, p in _named(built.model))


def _named(model):
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("plan", ["mola-2468", "alphalora-hill", "alphalora-hill-opposite"])
def test_plans_by_block_meet_the_budget_of_experts(make_bench, plan):
    blocks = build(make_bench(), plan).facts["blocks"]
    assert sum(blocks) == EXPERTS * len(blocks)


@pytest.mark.parametrize("plan", ["uniform-2", "alphalora-hill-2"])
def test_a_smaller_budget_is_met(make_bench, plan):
    blocks = build(make_bench(), plan).facts["blocks"]
    assert sum(blocks) == 2 * len(blocks)


@pytest.mark.parametrize("plan", ["sensitivity", "sensitivity-opposite", "eva"])
def test_plans_by_module_have_the_parameters_of_an_even_one(make_bench, plan):
    built = build(make_bench(), plan)
    shapes = linear_shapes(make_bench())
    one_more = max(Mixture().parameters(inside, out, 1, RANK) + inside for out, inside in shapes)
    assert 0 <= parameters(shapes, Mixture()) - trained(built.model) <= one_more


@pytest.mark.parametrize("plan", ["alphalora-hill", "sensitivity", "eva"])
def test_a_twin_in_rank_has_the_numbers_of_its_plan_and_no_router(make_bench, plan):
    model = build(make_bench(), plan).model
    twin = build(make_bench(), f"{plan}-rank").model
    assert not [name for name, _ in _named(twin) if "router" in name]
    numbers, ranks = (
        {
            m.module_name: (m.num_experts["default"], m.r["default"])
            for m in found.modules()
            if isinstance(m, AlphaLoraLayer)
        }
        for found in (model, twin)
    )
    assert ranks == {name: (1, RANK * number) for name, (number, _) in numbers.items()}


def test_a_twin_is_what_the_package_calls_spend_rank(make_bench):
    from axolotl_alphalora.planning import Planner, plan_request, read_block

    bench = make_bench()
    block = {"allocation": {"strategy": "alphalora", "estimator": "hill"}, "spend": "rank"}
    cfg = {"base_model": bench.directory, "lora_r": RANK, "lora_target_linear": True}
    cfg["alphalora"] = {**block, "experts_per_block": EXPERTS}
    plan, _ = Planner().plan(plan_request(cfg, read_block(cfg)))
    twin = build(bench, "alphalora-hill-rank").model
    ranks = {m.module_name: m.r["default"] for m in twin.modules() if isinstance(m, AlphaLoraLayer)}
    assert ranks == {name: plan.rank_pattern.get(name, RANK) for name in plan.counts}


def test_a_fixed_router_stays_and_a_shared_one_is_shared(make_bench):
    bench = make_bench()
    whole = trained(build(bench, "uniform").model)
    routers = sum(EXPERTS * inside for _, inside in linear_shapes(make_bench()))
    assert trained(build(make_bench(), "fixed-router").model) == whole - routers
    shared = build(bench := make_bench(), "shared-router").model
    widths = {inside for _, inside in linear_shapes(make_bench())}
    assert trained(shared) == whole - routers + EXPERTS * sum(widths)


def test_only_the_unbalanced_mixture_has_no_balance_loss(make_bench):
    weights = {
        method: build(make_bench(), method).model.peft_config["default"].aux_loss_coef
        for method in ("unbalanced", "uniform", "fixed-router")
    }
    assert weights == {"unbalanced": 0.0, "uniform": 0.001, "fixed-router": 0.001}


def test_methods_start_from_the_same_weights_where_they_have_them(make_bench):
    """A seed starts a method in one way."""
    first, again, other = (
        dict(_named(build(make_bench(seed=seed), "uniform").model)) for seed in (0, 0, 1)
    )
    assert all(torch.equal(again[name], value) for name, value in first.items())
    assert not all(torch.equal(other[name], value) for name, value in first.items())


@pytest.fixture
def benchmark(make_bench):
    """What a method with axolotl's own code is built on; its imports take long."""
    pytest.importorskip("axolotl")
    return make_bench()


def test_mixlora_is_axolotls_own_with_its_loss(benchmark):
    bench = benchmark
    feed_forward = 3 * len(bench.model.model.layers)
    built = build(bench, "mixlora")
    names = [name for name, _ in _named(built.model)]
    assert len(names) >= 2 * EXPERTS * feed_forward
    assert all(".mlp." in name for name in names)
    built.model.train()
    backward(built, bench.rows[:2], "cpu")
    routers = [p for name, p in _named(built.model) if "lora" not in name]
    assert routers and all(p.grad is not None and p.grad.any() for p in routers)


def test_what_is_not_installed_says_so(monkeypatch):
    from benchmarks.study import methods

    monkeypatch.setitem(methods._MIXTURES, "strange", {"allocation": "no-such-strategy"})
    assert "no-such-strategy" in why_not("strange")
    assert why_not("uniform") is why_not("lora-r8") is None
