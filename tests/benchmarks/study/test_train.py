"""The study's training loop: its loss, its gradients, the balance loss, the same digits again."""

import pytest
import torch

from axolotl_alphalora.adapter import AlphaLoraLayer, find_balancer
from benchmarks.study import train as training
from benchmarks.study.methods import METHODS
from benchmarks.study.rows import Batch, steps
from benchmarks.study.train import Recipe, backward, token_losses, train

RECIPE = Recipe(batch=4)


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def awake(built):
    """With B away from zero, so that everything has a gradient."""
    torch.manual_seed(1)
    for name, parameter in built.model.named_parameters():
        if parameter.requires_grad and ("alphalora_B" in name or "lora_B" in name):
            torch.nn.init.normal_(parameter, std=0.02)
    return built


@pytest.mark.parametrize("method", ["lora-r8", "uniform"])
def test_logits_at_labels_alone_give_the_loss_and_gradients_of_the_models_own(
    make_bench, method, monkeypatch
):
    monkeypatch.setitem(training.MICRO_TOKENS, "cpu", 10_000)  # the model is called once
    bench = make_bench()
    built = awake(METHODS[method](bench))
    built.model.train()
    rows = bench.rows[:5]
    loss = backward(built, rows, "cpu")
    found = gradients(built.model)
    built.model.zero_grad()
    batch = Batch.of(rows, "cpu")
    labels = torch.full_like(batch.targets, -100)
    labels[:, 1:] = batch.targets[:, :-1]
    own = built.model(input_ids=batch.ids, attention_mask=batch.mask, labels=labels).loss
    own.backward()
    assert loss == pytest.approx(own.item(), rel=1e-6)
    expected = gradients(built.model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


def test_the_balance_loss_has_a_gradient_in_the_routers(make_bench):
    bench = make_bench()
    built = awake(METHODS["uniform"](bench))
    built.model.train()
    found = {}
    for coefficient in (0.0, 1.0):
        for module in built.model.modules():
            if isinstance(module, AlphaLoraLayer):
                module.aux_loss_coef["default"] = coefficient
        backward(built, bench.rows[:4], "cpu")
        found[coefficient] = gradients(built.model)
        built.model.zero_grad()
    changed = {
        name
        for name, gradient in found[1.0].items()
        if not torch.allclose(gradient, found[0.0][name], rtol=1e-4, atol=1e-8)
    }
    routers = {name for name in found[1.0] if "alphalora_router" in name}
    assert routers and routers <= changed
    assert find_balancer(built.model).pop("train") > 0


def test_parts_of_a_step_add_up_to_the_whole(make_bench, monkeypatch):
    bench = make_bench()
    built = awake(METHODS["lora-r8"](bench))
    found = []
    for tokens in (10_000, 150):
        monkeypatch.setitem(training.MICRO_TOKENS, "cpu", tokens)
        loss = backward(built, bench.rows[:8], "cpu")
        found.append((loss, gradients(built.model)))
        built.model.zero_grad()
    (whole, one), (parts, other) = found
    assert parts == pytest.approx(whole, rel=1e-6)
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", ["lora-r40", "uniform", "dense"])
def test_a_run_gives_the_same_digits_again(make_bench, method):
    runs = []
    for _ in range(2):
        built = METHODS[method](bench := make_bench())
        facts = train(built, bench.rows, RECIPE, 1e-2, 3, "cpu")
        weights = {n: p for n, p in built.model.named_parameters() if p.requires_grad}
        runs.append((facts, weights))
    (first, weights), (second, again) = runs
    assert first == second
    assert first["steps"] == 3
    assert first["train_losses"][-1] < first["train_losses"][0]
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())


def test_the_seed_decides_the_order_of_the_rows_and_the_start(make_bench):
    bench = make_bench()
    orders = [list(steps(bench.rows, 4, 2, seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    everything = sorted(row.ids for row in bench.rows)
    for order in orders:
        seen = [row.ids for batch in order for row in batch]
        assert sorted(seen[:12]) == sorted(seen[12:]) == everything
    starts = []
    for seed in (0, 0, 1):
        model = METHODS["lora-r8"](make_bench(seed=seed)).model
        starts.append(next(p for n, p in model.named_parameters() if "lora_A" in n))
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_losses_of_rows_do_not_depend_on_their_neighbours(make_bench):
    bench = make_bench()
    rows = bench.rows[:3]
    together = token_losses(bench.model, Batch.of(rows, "cpu"))
    alone = torch.cat([token_losses(bench.model, Batch.of([row], "cpu")) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
