"""The adapter as a PEFT method: what every PEFT user does with one, and what is refused."""

import copy
import json

import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MixtralConfig,
    MixtralForCausalLM,
)

from axolotl_alphalora.adapter import AlphaLoraConfig, resolve_targets
from helpers.kinds import layers
from helpers.models import tiny_llama_config

IDS = torch.tensor([[5, 6, 7, 8, 9]])


def config(**changes) -> AlphaLoraConfig:
    settings = {
        "r": 4,
        "num_experts": 3,
        "target_modules": ["q_proj", "down_proj"],
        "init_weights": False,
        "task_type": "CAUSAL_LM",
    }
    return AlphaLoraConfig(**(settings | changes))


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(IDS).logits


def test_a_new_adapter_leaves_the_model_as_it_was(tiny_llama):
    before = logits(tiny_llama)
    model = get_peft_model(tiny_llama, config(init_weights=True))
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


def test_only_the_adapter_is_trainable_and_its_names_satisfy_the_host(tiny_llama):
    model = get_peft_model(tiny_llama, config())
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(names) == 4 * 3
    assert all("alphalora_" in n and "lora_" in n for n in names)
    assert any("lora_B" in n for n in names)
    assert not any(hasattr(layer, "lora_A") for layer in layers(model).values())


def test_counts_are_resolved_to_exact_names_and_plain_ints(tiny_llama, tmp_path):
    model = get_peft_model(tiny_llama, config())
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["num_experts"] == {
        f"model.layers.{i}.{m}": 3 for i in (0, 1) for m in ("self_attn.q_proj", "mlp.down_proj")
    }
    assert saved["peft_type"] == "ALPHALORA"


def test_a_mapping_needs_no_target_modules_and_zero_leaves_a_module_alone(tiny_llama):
    counts = {
        "model.layers.0.self_attn.q_proj": 0,
        "model.layers.0.mlp.up_proj": 1,
        "model.layers.1.mlp.up_proj": 5,
    }
    model = get_peft_model(tiny_llama, config(target_modules=None, num_experts=counts))
    found = {name: layer.num_experts["default"] for name, layer in layers(model).items()}
    assert found == {"model.layers.0.mlp.up_proj": 1, "model.layers.1.mlp.up_proj": 5}
    routers = {name: len(layer.alphalora_router) for name, layer in layers(model).items()}
    assert routers == {"model.layers.0.mlp.up_proj": 0, "model.layers.1.mlp.up_proj": 1}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"target_modules": "all-linear"}, 14),
        ({"target_modules": r".*layers\.1.*_proj"}, 7),
        ({"target_modules": "all-linear", "exclude_modules": ["o_proj"]}, 12),
        ({"layers_to_transform": [1]}, 2),
        ({"target_modules": "all-linear", "layers_to_transform": [1]}, 7),
        ({"target_modules": "all-linear", "layers_to_transform": 0}, 7),
        ({"layers_to_transform": 0, "layers_pattern": "layers"}, 2),
        ({"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [1]}, 2),
        ({"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]}, 2),
    ],
)
def test_targets_are_chosen_as_lora_chooses_them(tiny_llama, changes, expected):
    chosen = resolve_targets(config(**changes), tiny_llama)
    model = get_peft_model(tiny_llama, config(**changes))
    assert list(layers(model)) == chosen
    assert len(chosen) == expected


@pytest.mark.parametrize("way", ["target_modules", "num_experts"])
def test_layers_to_transform_chooses_among_exact_names_too(tiny_llama, way):
    names = [f"model.layers.{index}.self_attn.q_proj" for index in (0, 1)]
    counts = {"target_modules": None, "num_experts": dict(zip(names, (0, 2), strict=True))}
    changes = {"target_modules": names} if way == "target_modules" else counts
    model = get_peft_model(tiny_llama, config(layers_to_transform=[1], **changes))
    assert list(layers(model)) == names[1:]


def test_llama_2_7b_costs_660224_parameters_an_expert():
    shape = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(shape)
    names = resolve_targets(config(target_modules="all-linear"), base)
    counts = {name: 1 + int(name.split(".")[2]) % 8 for name in names}
    model = get_peft_model(
        base, config(target_modules=None, num_experts=counts, r=8), low_cpu_mem_usage=True
    )
    per_block = [1 + i % 8 for i in range(32)]
    router = 35_584
    expected = 660_224 * sum(per_block) - router * per_block.count(1)
    assert model.get_nb_trainable_parameters()[0] == expected


def test_modules_to_save_are_trained_and_reloaded(tiny_llama, tmp_path):
    base = copy.deepcopy(tiny_llama)
    model = get_peft_model(tiny_llama, config(modules_to_save=["embed_tokens"]))
    with torch.no_grad():
        model.base_model.model.model.embed_tokens.modules_to_save["default"].weight.add_(1.0)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, tmp_path)), expected)


def test_several_adapters_with_other_counts_live_side_by_side(tiny_llama, tmp_path):
    base = logits(tiny_llama)
    model = get_peft_model(tiny_llama, config())
    first = logits(model)
    model.add_adapter("other", config(num_experts=5, target_modules=["q_proj", "up_proj"], r=2))
    torch.testing.assert_close(logits(model), first)
    model.set_adapter("other")
    second = logits(model)
    assert not torch.allclose(first, second)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), base)
    torch.testing.assert_close(logits(model), second)

    model.save_pretrained(tmp_path)
    model.delete_adapter("other")
    torch.testing.assert_close(logits(model), first)
    model.load_adapter(tmp_path / "other", "again")
    model.set_adapter("again")
    torch.testing.assert_close(logits(model), second)
    model.set_adapter("default")
    torch.testing.assert_close(logits(model), first)
    torch.testing.assert_close(logits(model.unload()), base)


def test_block_shares_count_the_routers_of_one_adapter_only(tiny_llama):
    counts = {"model.layers.0.mlp.up_proj": 4, "model.layers.0.mlp.down_proj": 4}
    model = get_peft_model(tiny_llama, config(target_modules=None, num_experts=counts))
    model.add_adapter("other", config(target_modules=["up_proj"]))
    up = layers(model)["model.layers.0.mlp.up_proj"]
    assert up.block_share == {"default": 0.5, "other": 1.0}


def test_unload_takes_the_hooks_along(tiny_llama):
    bare = get_peft_model(tiny_llama, config()).unload()
    assert not bare._forward_hooks and not bare._forward_pre_hooks


def test_injection_without_a_peft_model(tiny_llama):
    expected = logits(get_peft_model(copy.deepcopy(tiny_llama), config(num_experts=1)))
    model = inject_adapter_in_model(config(num_experts=1), tiny_llama)
    assert logits(model).shape == expected.shape
    assert len(layers(model)) == 4


def test_a_half_precision_base_gets_fp32_experts_unless_told_otherwise(tiny_llama):
    half = tiny_llama.to(torch.bfloat16)
    model = get_peft_model(copy.deepcopy(half), config())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16
    model = get_peft_model(half, config(), autocast_adapter_dtype=False)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.bfloat16}
    assert torch.isfinite(logits(model)).all()


def test_gpt2_conv1d():
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=97))
    model = get_peft_model(base, config(target_modules=["c_attn", "c_fc"]))
    assert [layer.out_features for layer in layers(model).values()] == [192, 256] * 2
    model.train()
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_sequence_classifier_keeps_its_head_out_of_all_linear():
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_config(tiny_llama_config(pad_token_id=0))
    model = get_peft_model(base, config(target_modules="all-linear", task_type="SEQ_CLS"))
    assert len(layers(model)) == 14
    model.train()
    out = model(IDS, labels=torch.tensor([1]))
    out.loss.backward()
    assert layers(model)["model.layers.0.self_attn.q_proj"].alphalora_A["default"].grad is not None


def test_merging_says_why_not(tiny_llama):
    model = get_peft_model(tiny_llama, config())
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match="cannot be merged.*chooses.*for every token"):
            merge()


def test_mixed_batches_are_refused(tiny_llama):
    model = get_peft_model(tiny_llama, config())
    with pytest.raises(ValueError, match="cannot mix adapters within a batch"):
        model(IDS, adapter_names=["default"])
    expected = model(IDS).logits
    assert torch.equal(model(IDS, adapter_names=None).logits, expected)
    assert model.generate(IDS, adapter_names=None, max_new_tokens=1).shape[1] == IDS.shape[1] + 1


def tiny_mixtral():
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=97,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
        )
    )


@pytest.mark.parametrize("target", ["gate_up_proj", "down_proj"])
def test_stacked_experts_of_a_moe_base_are_refused_by_name(target):
    with pytest.raises(ValueError, match=rf"model.layers.0.mlp.experts.{target} is a stacked"):
        get_peft_model(tiny_mixtral(), config(target_modules=["q_proj", target]))


def test_all_linear_on_a_moe_base_says_what_it_leaves_out():
    with pytest.warns(UserWarning, match="model.layers.0.mlp.experts.gate_up_proj"):
        model = get_peft_model(tiny_mixtral(), config(target_modules="all-linear"))
    assert "model.layers.0.self_attn.q_proj" in layers(model)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target_modules": ["embed_tokens"]}, TypeError, "model.embed_tokens is a Embedding"),
        ({"target_modules": ["q_prj"]}, ValueError, "q_prj.*matches no module.*q_proj"),
        ({"target_modules": "q_proj"}, ValueError, r"regular expression.*\[q_proj\]"),
        ({"layers_to_transform": [0, 99]}, ValueError, "names block 99"),
        ({"target_modules": ["q_proj", "w1"]}, ValueError, r"\['w1'\] matches no module"),
        (
            {"num_experts": {"model.layers.9.self_attn.q_proj": 2}, "target_modules": None},
            ValueError,
            "model.layers.9.self_attn.q_proj",
        ),
        (
            {"num_experts": {"model.layers.0.self_attn.q_proj": 2}},
            ValueError,
            "model.layers.0.mlp.down_proj has no entry in num_experts",
        ),
        (
            {
                "num_experts": {"model.layers.0.self_attn.q_proj": 2},
                "target_modules": ["self_attn.k_proj"],
            },
            ValueError,
            "gives model.layers.0.self_attn.q_proj 2 experts, but target_modules",
        ),
        (
            {
                "num_experts": {f"model.layers.{i}.self_attn.q_proj": 2 for i in (0, 1)},
                "target_modules": None,
                "layers_to_transform": [1],
            },
            ValueError,
            "gives model.layers.0.self_attn.q_proj 2 experts, but .*layers_to_transform leave",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_model_leaves_it_untouched(
    tiny_llama, changes, error, message
):
    with pytest.raises(error, match=message):
        get_peft_model(tiny_llama, config(**changes))
    assert not layers(tiny_llama)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"r": 0}, ValueError, "r must be a whole number of at least 1"),
        ({"top_k": 0}, ValueError, "top_k"),
        ({"lora_alpha": None}, ValueError, "lora_alpha must be a number above 0"),
        ({"lora_alpha": float("nan")}, ValueError, "lora_alpha"),
        ({"num_experts": 0}, ValueError, "num_experts must be at least 1"),
        ({"num_experts": {"a": -1}}, ValueError, r"num_experts\['a'\] must be at least 0"),
        ({"num_experts": {"a": 1.5}}, TypeError, r"num_experts\['a'\] must be a whole number"),
        ({"num_experts": {"a": 0}}, ValueError, "gives no module an expert"),
        ({"lora_dropout": 1.0}, ValueError, "lora_dropout"),
        ({"aux_loss_coef": float("nan")}, ValueError, "aux_loss_coef"),
        ({"layers_pattern": "h"}, ValueError, "layers_pattern has no effect"),
        ({"target_modules": ".*q", "layers_to_transform": [0]}, ValueError, "regex"),
    ],
)
def test_impossible_values_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        config(**changes)


def test_weights_that_do_not_fit_their_config_are_refused_by_name(tiny_llama, tmp_path):
    base = copy.deepcopy(tiny_llama)
    get_peft_model(tiny_llama, config()).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    good = json.loads(file.read_text())

    def load(**changes):
        file.write_text(json.dumps(good | changes))
        PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)

    first = "model.layers.0.self_attn.q_proj"
    with pytest.raises(ValueError, match=rf"{first}.*the file holds \(12, 64\).*\(20, 64\)"):
        load(num_experts=good["num_experts"] | {first: 5})
    with pytest.raises(ValueError, match="do not fit its config"):
        load(r=2)
    with pytest.raises(ValueError, match="hold.*q_proj.*no place"):
        load(num_experts=good["num_experts"] | {first: 0})
    with pytest.raises(ValueError, match="no tensor for.*up_proj"):
        load(
            num_experts=good["num_experts"] | {"model.layers.0.mlp.up_proj": 2},
            target_modules=None,
        )
