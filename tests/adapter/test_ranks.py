"""A rank for each module: the arithmetic against LoRA and a loop, saving, and what is refused."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model

from axolotl_alphalora.adapter import AlphaLoraConfig, AlphaLoraLayer
from axolotl_alphalora.adapter.balance import LoadBalancer
from helpers import reference
from helpers.kinds import layers

IDS = torch.tensor([[5, 6, 7, 8, 9]])
QUERY, OTHER_QUERY, UP, DOWN = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.q_proj",
    "model.layers.0.mlp.up_proj",
    "model.layers.1.mlp.down_proj",
)


def config(**changes) -> AlphaLoraConfig:
    settings = {
        "r": 4,
        "num_experts": {QUERY: 3, OTHER_QUERY: 1, DOWN: 2},
        "rank_pattern": {OTHER_QUERY: 12, DOWN: 3},
        "init_weights": False,
        "task_type": "CAUSAL_LM",
    }
    return AlphaLoraConfig(**(settings | changes))


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("factors", [(1, 2, 3), (3, 1, 5)])
def test_one_expert_per_module_is_a_lora_with_the_same_ranks(tiny_llama, use_rslora, factors):
    r, alpha = 2, 6
    ranks = dict(zip((QUERY, UP, DOWN), (r * factor for factor in factors), strict=True))
    shared = {"r": r, "lora_alpha": alpha, "use_rslora": use_rslora, "task_type": "CAUSAL_LM"}
    ours = get_peft_model(
        copy.deepcopy(tiny_llama),
        AlphaLoraConfig(
            num_experts=dict.fromkeys(ranks, 1),
            rank_pattern=ranks,
            init_weights=False,
            **shared,
        ),
    )
    # LoRA's keys are regular expressions for the end of a name.
    patterns = {name.removeprefix("model.").replace(".", r"\."): k for name, k in ranks.items()}
    lora = get_peft_model(
        tiny_llama, LoraConfig(target_modules=list(ranks), rank_pattern=patterns, **shared)
    )
    pairs = []
    for name, layer in layers(ours).items():
        twin = lora.get_base_model().get_submodule(name)
        pairs.append((layer.alphalora_A["default"], twin.lora_A["default"].weight))
        pairs.append((layer.alphalora_B["default"], twin.lora_B["default"].weight))
    with torch.no_grad():
        for mine, theirs in pairs:
            assert mine.shape == theirs.shape
            theirs.copy_(mine)

    outputs = [model.train()(IDS, labels=IDS) for model in (ours, lora)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits)
    for output in outputs:
        output.loss.backward()
    assert len(pairs) == 6
    for mine, theirs in pairs:
        assert mine.grad.abs().max() > 0
        torch.testing.assert_close(mine.grad, theirs.grad)


def layer_of(settings: AlphaLoraConfig, num_experts: int, rank: int) -> AlphaLoraLayer:
    base = torch.nn.Linear(6, 5, bias=False, dtype=torch.float64)
    layer = AlphaLoraLayer(base, "default", settings, num_experts, rank, "x", LoadBalancer())
    return layer.double()


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(1, 5), st.booleans())
def test_one_expert_of_the_joint_rank_equals_equally_gated_experts(n, r, use_rslora):
    settings = AlphaLoraConfig(
        lora_alpha=7, top_k=n, use_rslora=use_rslora, num_experts=n, init_weights=False
    )
    several, one = layer_of(settings, n, r), layer_of(settings, 1, n * r)
    with torch.no_grad():
        several.alphalora_router["default"].zero_()  # every gate is 1 / n
        one.alphalora_A["default"].copy_(several.alphalora_A["default"])
        one.alphalora_B["default"].copy_(several.alphalora_B["default"])
        x = torch.randn(4, 6, dtype=torch.float64)
        expected = several(x) - several.base_layer(x)
        if use_rslora:
            expected = expected * n**0.5
        torch.testing.assert_close(one(x) - one.base_layer(x), expected, rtol=1e-6, atol=1e-9)


def test_each_module_computes_with_its_own_rank(tiny_llama):
    model = get_peft_model(tiny_llama, config(lora_alpha=5))
    found = layers(model)
    assert {name: (m.num_experts["default"], m.r["default"]) for name, m in found.items()} == {
        QUERY: (3, 4),
        OTHER_QUERY: (1, 12),
        DOWN: (2, 3),
    }
    assert found[OTHER_QUERY].extra_repr().startswith("experts=(default: 1 x r12")
    for layer in found.values():
        n, rank = layer.num_experts["default"], layer.r["default"]
        x = torch.randn(7, layer.in_features)
        router = layer.alphalora_router["default"] if n > 1 else None
        a, b = layer.alphalora_A["default"], layer.alphalora_B["default"]
        top_k = min(2, n)
        want = reference.expert_mixture(
            x, a, b, router, num_experts=n, rank=rank, top_k=top_k, scaling=5 / rank
        )
        torch.testing.assert_close(layer(x) - layer.base_layer(x), want)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_ranks_are_saved_and_come_back(tiny_llama, tmp_path, low_cpu_mem_usage):
    base = copy.deepcopy(tiny_llama)
    model = get_peft_model(tiny_llama, config())
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["rank_pattern"] == {OTHER_QUERY: 12, DOWN: 3}
    again = PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)


def test_a_config_from_before_there_were_ranks_still_loads(tiny_llama, tmp_path):
    base = copy.deepcopy(tiny_llama)
    model = get_peft_model(tiny_llama, config(rank_pattern={}))
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    saved = json.loads(file.read_text())
    del saved["rank_pattern"]
    file.write_text(json.dumps(saved))
    again = PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)


def test_adapters_with_other_ranks_live_side_by_side(tiny_llama, tmp_path):
    base = copy.deepcopy(tiny_llama)
    other_settings = config(num_experts={QUERY: 1, UP: 4}, rank_pattern={QUERY: 9, UP: 1})
    model = get_peft_model(tiny_llama, config())
    first = logits(model)
    model.add_adapter("other", other_settings)
    assert layers(model)[QUERY].r == {"default": 4, "other": 9}
    torch.testing.assert_close(logits(model), first, rtol=0, atol=0)
    model.set_adapter("other")
    second = logits(model)
    model.save_pretrained(tmp_path)
    alone = PeftModel.from_pretrained(base, tmp_path / "other")
    torch.testing.assert_close(logits(alone), second)
    alone.load_adapter(tmp_path, "default_again")
    alone.set_adapter("default_again")
    torch.testing.assert_close(logits(alone), first)


def test_weights_of_another_rank_are_refused_by_name(tiny_llama, tmp_path):
    base = copy.deepcopy(tiny_llama)
    get_peft_model(tiny_llama, config()).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    saved = json.loads(file.read_text())
    saved["rank_pattern"][OTHER_QUERY] = 8
    file.write_text(json.dumps(saved))
    with pytest.raises(
        ValueError, match=rf"{OTHER_QUERY}.*the file holds \(12, 64\).*rank_pattern give \(8, 64\)"
    ):
        PeftModel.from_pretrained(base, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank_pattern": {"model.layers.9.self_attn.q_proj": 2}}, "layers.9.*does not have"),
        ({"rank_pattern": {QUERY + "x": 2}}, f"rank_pattern names.*Did you mean {QUERY}"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern names q_proj.*no patterns"),
        ({"rank_pattern": {r"model\.layers\.0\..*": 2}}, "rank_pattern names.*no patterns"),
        ({"rank_pattern": {UP: 2}}, f"gives {UP} a rank, but it is no target"),
        (
            {"num_experts": {QUERY: 1, DOWN: 0}, "rank_pattern": {DOWN: 2}},
            f"gives {DOWN} a rank, but num_experts gives it 0 experts",
        ),
        (
            {"num_experts": 2, "target_modules": ["q_proj"], "rank_pattern": {DOWN: 2}},
            f"gives {DOWN} a rank, but it is no target",
        ),
    ],
)
def test_ranks_for_modules_without_experts_leave_the_model_untouched(tiny_llama, changes, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(tiny_llama, config(**changes))
    assert not layers(tiny_llama)


@pytest.mark.parametrize(
    ("ranks", "error", "message"),
    [
        ({"a": 0}, ValueError, r"rank_pattern\['a'\] must be at least 1"),
        ({"b": 4, "a": -2}, ValueError, r"rank_pattern\['a'\] must be at least 1"),
        ({"a": 2.0}, TypeError, r"rank_pattern\['a'\] must be a whole number"),
        ({"a": True}, TypeError, r"rank_pattern\['a'\] must be a whole number"),
        ({"a": "8"}, TypeError, r"rank_pattern\['a'\] must be a whole number"),
        (["a"], TypeError, "rank_pattern must be a mapping"),
        (None, TypeError, "rank_pattern must be a mapping"),
    ],
)
def test_impossible_ranks_are_refused(ranks, error, message):
    with pytest.raises(error, match=message):
        config(rank_pattern=ranks)
