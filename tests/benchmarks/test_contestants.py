"""The contestants of a training step are what their names say, and share the base's weights."""

import copy
from argparse import Namespace
from collections import Counter

import pytest
import torch
from torch import nn

from axolotl_alphalora.adapter import AlphaLoraConfig, AlphaLoraLayer
from axolotl_alphalora.adapter.balance import LoadBalancer
from benchmarks.common import make_shape, random_ids
from benchmarks.contestants import (
    FFN,
    MIXTURES,
    Absent,
    build,
    plan_counts,
    uneven_counts,
    with_loops,
)

OPTIONS = {
    "model": "tiny",
    "experts": 4,
    "rank": 3,
    "top_k": 2,
    "dropout": 0.0,
    "checkpointing": False,
    "dtype": "fp32",
    "segments": 1,
}


def made(name, base, **changes):
    """A contestant with 8 tokens."""
    return build(name, base, random_ids(base, 1, 8, "cpu"), Namespace(**OPTIONS | changes))


def routers(model):
    """Parameters of a model's routers."""
    return sum(p.numel() for name, p in model.named_parameters() if "router" in name)


@pytest.fixture
def base(tiny_llama):
    return tiny_llama.requires_grad_(False)


@pytest.mark.parametrize("name", ["none", "lora", "lora-equal", "experts", "uneven", "dispatch"])
def test_no_weight_of_the_base_is_copied_and_none_is_trained(name, base):
    run = made(name, base)
    mine = {id(parameter) for parameter in run.model.parameters()}
    assert all(id(parameter) in mine for parameter in base.parameters())
    assert not any(p.requires_grad for p in base.parameters())
    assert bool(run.parameters) == (name != "none")


def test_experts_and_the_lora_of_equal_parameters_differ_by_the_routers(base):
    experts = made("experts", base)
    equal = made("lora-equal", base)
    assert experts.parameters - routers(experts.model) == equal.parameters
    assert equal.parameters == 4 * made("lora", base).parameters


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_and_its_lora_train_as_many_parameters(name, base):
    """To half a rank of all layers."""
    mixture, lora = made(name, base, rank=8), made(f"{name}-lora", base, rank=8)
    assert any("lora_A" in n for n, _ in lora.model.named_parameters())
    assert abs(mixture.parameters - lora.parameters) <= made("lora", base, rank=1).parameters / 2
    plain = made("experts", base, rank=8)
    assert (mixture.parameters == plain.parameters) == (name == "experts")


def test_segments_are_those_of_the_command_where_a_contestant_names_none(base):
    (layer, *_) = [
        m for m in made("experts", base, rank=8, segments=2).model.modules()
        if isinstance(m, AlphaLoraLayer)
    ]  # fmt: skip
    assert layer.num_experts["default"] == 8 and layer.r["default"] == 4


def test_mixlora_and_experts_on_the_feed_forward_have_equal_experts(base):
    pytest.importorskip("axolotl")
    mixlora, mine = made("mixlora", base), made("experts-ffn", base)
    assert mixlora.parameters - routers(mixlora.model) == mine.parameters - routers(mine.model)
    layers = {m.module_name for m in mine.model.modules() if isinstance(m, AlphaLoraLayer)}
    assert Counter(name.rpartition(".")[2] for name in layers) == dict.fromkeys(FFN, 2)
    trained = [name for name, p in mixlora.model.named_parameters() if p.requires_grad]
    assert all(".mlp.router." in name or ".mlp.experts." in name for name in trained)
    # Its trainer adds the load-balancing loss of all layers, 0.01 by default, of at least 1 each.
    loss = mixlora.loss()
    with torch.no_grad():
        plain = mixlora.model(input_ids=mixlora.ids, labels=mixlora.ids).loss
    assert loss.item() > plain.item() + 0.005
    mixlora.step()
    assert torch.isfinite(mixlora.last_loss)


def test_a_plan_has_the_mean_that_was_asked_for_and_is_what_is_trained(tiny_llama, tmp_path):
    with torch.no_grad():  # better trained from block to block: tails of decreasing exponents
        for place, block in enumerate(tiny_llama.model.layers):
            for weight in (p for p in block.parameters() if p.dim() == 2):
                u, s, v = torch.linalg.svd(weight, full_matrices=False)
                s = torch.arange(1, len(s) + 1.0) ** -(0.3 + 0.5 * place)
                weight.copy_(u * s @ v)
    tiny_llama.save_pretrained(tmp_path)
    base = tiny_llama.requires_grad_(False)
    run = made("plan", base, model=str(tmp_path))
    layers = [m for m in run.model.modules() if isinstance(m, AlphaLoraLayer)]
    numbers = {m.module_name: m.num_experts["default"] for m in layers}
    counts = plan_counts(str(tmp_path), Namespace(**OPTIONS))
    assert numbers == {name: count for name, count in counts.items() if count}
    blocks = [counts[f"model.layers.{place}.mlp.up_proj"] for place in (0, 1)]
    assert sum(blocks) == 2 * OPTIONS["experts"]
    assert blocks[0] != blocks[1]


def test_random_weights_of_a_shape_have_no_plan(base):
    with pytest.raises(Absent, match="uneven"):
        made("plan", base)


def test_what_cannot_be_planned_is_absent_with_the_reason(base, tmp_path):
    with pytest.raises(Absent, match=str(tmp_path)):
        made("plan", base, model=str(tmp_path))


def test_uneven_numbers_have_the_mean_and_grow():
    counts = uneven_counts(make_shape("7b", "bf16", "meta"), 5)
    assert len(counts) == 7 * 32
    kinds = Counter()
    for name, number in counts.items():
        kinds[name.rpartition(".")[2]] += number
    assert set(kinds.values()) == {160}
    numbers = [counts[f"model.layers.{place}.self_attn.q_proj"] for place in range(32)]
    assert numbers == sorted(numbers) and numbers[0] == 1 and numbers[-1] == 9


@pytest.mark.parametrize(("number", "top_k"), [(1, 2), (2, 2), (5, 2), (5, 1), (7, 3)])
def test_the_dispatch_loop_has_the_values_and_gradients_of_the_stacked_experts(number, top_k):
    torch.manual_seed(0)
    config = AlphaLoraConfig(num_experts=number, top_k=top_k, r=3, init_weights=False)
    layer = AlphaLoraLayer(nn.Linear(13, 11), "default", config, number, 3, "m", LoadBalancer())
    model = with_loops(nn.Sequential(copy.deepcopy(layer)), dropout=0.0)
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
