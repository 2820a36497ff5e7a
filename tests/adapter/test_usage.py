"""What the routers decide, counted on the device, against a plain count token by token."""

import math

import pytest
import torch

from axolotl_alphalora.adapter import find_balancer, find_routers
from axolotl_alphalora.adapter.usage import RouterUsage, UsageMeter, summarise
from helpers.balancing import CHECKPOINTING, adapted, router_inputs, switch_checkpointing


def plain_count(x, router, top_k, mask):
    """Token shares, mean gates, entropy and largest gate of the tokens whose mask is 1."""
    number = router.shape[0]
    slots, gates, entropies, tops = [0] * number, [0.0] * number, [], []
    for token, real in zip(x.reshape(-1, x.shape[-1]), mask.reshape(-1), strict=True):
        if not real:
            continue
        p = torch.softmax(router @ token, 0).tolist()
        best = sorted(range(number), key=p.__getitem__, reverse=True)[:top_k]
        total = sum(p[e] for e in best) if top_k > 1 else 1.0
        for e in best:
            slots[e] += 1
            gates[e] += p[e] / total
        entropies.append(-sum(q * math.log(q) for q in p) / math.log(number))
        tops.append(p[best[0]] / total)
    count = len(tops)
    return {
        "tokens": count,
        "token_share": [value / (count * top_k) for value in slots],
        "mean_gates": [value / count for value in gates],
        "entropy": sum(entropies) / count,
        "top_gate": sum(tops) / count,
    }


def counted(model, batches, phase="train"):
    """What the meter says of these batches, and what a plain count of the same inputs says."""
    balancer = find_balancer(model)
    balancer.usage = {phase: UsageMeter()}
    inputs = {}
    for batch in batches:
        with router_inputs(model) as seen:
            loss = model(**batch).loss
        for layer, x in seen:
            parts = inputs.setdefault(f"{layer.module_name}.default", (layer, [], []))
            parts[1].append(x.detach())
            parts[2].append(batch["attention_mask"])
        if loss.requires_grad:
            loss.backward()
    plain = {
        name: plain_count(
            torch.cat([x.reshape(-1, x.shape[-1]) for x in xs]),
            layer.alphalora_router["default"].detach(),
            layer.top_k["default"],
            torch.cat([mask.reshape(-1) for mask in masks]),
        )
        for name, (layer, xs, masks) in inputs.items()
    }
    return balancer.usage[phase].pop(find_routers(model)), plain


def check(usage, plain):
    assert usage.keys() == plain.keys()
    for name, want in plain.items():
        got = usage[name]
        assert got.tokens == want["tokens"]
        for key in ("token_share", "mean_gates"):
            assert list(getattr(got, key)) == pytest.approx(want[key], abs=1e-6), (name, key)
        for key in ("entropy", "top_gate"):
            assert getattr(got, key) == pytest.approx(want[key], abs=1e-5), (name, key)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("phase", ["train", "eval"])
def test_the_statistics_are_those_of_a_plain_count_without_padding(tiny_llama, batch, phase, top_k):
    model = adapted(tiny_llama, top_k=top_k).train(phase == "train")
    shorter = {key: value[:2, :9] for key, value in batch.items()}
    check(*counted(model, [batch, shorter], phase))


@pytest.mark.parametrize("mode", CHECKPOINTING)
def test_recomputation_is_not_counted_twice(tiny_llama, batch, mode):
    model = adapted(tiny_llama).train()
    switch_checkpointing(model, mode)
    usage, plain = counted(model, [batch])
    tokens = int(batch["attention_mask"].sum())
    assert {router.tokens for router in usage.values()} == {tokens}
    if mode == "none":
        check(usage, plain)


@pytest.mark.parametrize("order", [(True, False), (False, True), (True, True, False)])
def test_passes_in_inference_mode_and_others_add_up(tiny_llama, batch, order):
    model = adapted(tiny_llama).eval()
    balancer = find_balancer(model)
    meter = balancer.usage["eval"] = UsageMeter()
    for inference in order:
        with torch.inference_mode(inference):
            model(**batch)
    tokens = len(order) * int(batch["attention_mask"].sum())
    assert {router.tokens for router in meter.pop(find_routers(model)).values()} == {tokens}
    assert balancer.pop("eval") >= 2 - 1e-5


def test_reading_starts_a_new_window(tiny_llama, batch):
    model = adapted(tiny_llama).train()
    meter = find_balancer(model).usage["train"] = UsageMeter()
    model(**batch)
    assert meter.pop(find_routers(model))
    assert meter.pop(find_routers(model)) == {}


def test_nothing_is_counted_in_generation_or_without_a_meter(tiny_llama, batch):
    model = adapted(tiny_llama).eval()
    balancer = find_balancer(model)
    model(**batch)
    balancer.usage = {"train": UsageMeter(), "eval": UsageMeter()}
    model.generate(
        input_ids=batch["input_ids"][:1],
        attention_mask=batch["attention_mask"][:1],
        max_new_tokens=3,
    )
    assert balancer.usage["train"].pop(find_routers(model)) == {}
    assert balancer.usage["eval"].pop(find_routers(model)) == {}


def test_a_step_waits_for_no_value(tiny_llama, batch):
    """On the meta device there are no values: whatever asks for one fails."""
    model = adapted(tiny_llama).to("meta").train()
    meter = find_balancer(model).usage["train"] = UsageMeter()
    whole = {key: batch[key].to("meta") for key in ("input_ids", "labels")}
    for _ in range(2):
        model(**whole).loss.backward()
    with pytest.raises((RuntimeError, NotImplementedError)):
        meter.pop(find_routers(model))


def test_shares_become_load_and_dead_experts():
    usage = RouterUsage(100, 2, (0.5, 0.29, 0.2, 0.01), (0.6, 0.2, 0.19, 0.01), 0.7, 0.8)
    assert usage.load_max == pytest.approx(2.0)
    mean = 0.25
    variance = ((0.5 - mean) ** 2 + (0.29 - mean) ** 2 + (0.2 - mean) ** 2 + (0.01 - mean) ** 2) / 4
    assert usage.load_cv == pytest.approx(math.sqrt(variance) / mean)
    assert usage.dead == (3,)


def test_a_model_is_the_mean_of_its_routers_and_load_that_of_those_that_choose():
    even = RouterUsage(10, 2, (0.5, 0.5), (0.9, 0.1), 0.4, 0.9)
    uneven = RouterUsage(10, 1, (1.0, 0.0), (0.8, 0.0), 0.2, 0.8)
    assert summarise([even, uneven]) == pytest.approx(
        {
            "router_entropy": 0.3,
            "top_gate": 0.85,
            "load_cv": 1.0,
            "load_max": 2.0,
            "dead_experts": 0.5,
        }
    )
    assert summarise([even]).keys() == {"router_entropy", "top_gate"}
    assert summarise([]) == {}
    assert uneven.gate_share == (1.0, 0.0)
