"""Base models of other families: two random blocks each, adapted, trained and opened again."""

import copy
import functools
import tempfile
from collections import defaultdict

import bitsandbytes as bnb
import pytest
import torch
import transformers as hf
from peft import PeftModel, get_peft_model

from axolotl_alphalora.adapter import AlphaLoraConfig, AlphaLoraLayer
from axolotl_alphalora.blocks import block_name
from helpers import reference
from helpers.balancing import assert_same, gradients, router_inputs
from helpers.models import TINY_LLAMA, tiny_llama_config

SHAPE = TINY_LLAMA | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MOE = {
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 64,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
IMAGE_TOKEN, COEFFICIENT = 95, 0.3
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def gpt2():
    quiet = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 128}
    ids = {key: SHAPE[key] for key in SHAPE if key.endswith("_id")}
    return hf.GPT2Config(vocab_size=97, **sizes, **quiet, **ids)


def gemma_with_vision():
    vision = {"image_size": 28, "patch_size": 14, "num_hidden_layers": 2, "num_attention_heads": 4}
    return hf.Gemma3Config(
        text_config=SHAPE | {"head_dim": 16},
        vision_config=vision | {"hidden_size": 64, "intermediate_size": 64},
        mm_tokens_per_image=4,
        image_token_index=IMAGE_TOKEN,
        boi_token_index=93,
        eoi_token_index=94,
    )


FAMILIES = {
    "llama": (hf.LlamaForCausalLM, lambda: hf.LlamaConfig(**SHAPE)),
    "qwen2": (hf.Qwen2ForCausalLM, lambda: hf.Qwen2Config(**SHAPE)),
    "qwen3": (hf.Qwen3ForCausalLM, lambda: hf.Qwen3Config(**SHAPE, head_dim=16)),
    "mistral": (hf.MistralForCausalLM, lambda: hf.MistralConfig(**SHAPE)),
    "gemma3": (hf.Gemma3ForCausalLM, lambda: hf.Gemma3TextConfig(**SHAPE, head_dim=16)),
    "phi3": (hf.Phi3ForCausalLM, lambda: hf.Phi3Config(**SHAPE)),
    "gpt2": (hf.GPT2LMHeadModel, gpt2),
    "qwen2-moe": (hf.Qwen2MoeForCausalLM, lambda: hf.Qwen2MoeConfig(**SHAPE, **MOE)),
    "gemma3-vision": (hf.Gemma3ForConditionalGeneration, gemma_with_vision),
    "classifier": (
        hf.LlamaForSequenceClassification,
        lambda: tiny_llama_config(pad_token_id=0, num_labels=3),
    ),
}
TARGETS = dict.fromkeys(FAMILIES, "all-linear") | {
    "gemma3-vision": r"model\.language_model\..*_proj",
}
LEAVES = dict.fromkeys(FAMILIES, LLAMA) | {
    "phi3": ["o_proj", "qkv_proj", "gate_up_proj", "down_proj"],
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "qwen2-moe": [*LLAMA[:4], *(f"shared_expert.{name}" for name in LLAMA[4:])]
    + ["shared_expert_gate"],
}
every_family = pytest.mark.parametrize("family", FAMILIES)


@functools.cache
def built(family):
    kind, shape = FAMILIES[family]
    torch.manual_seed(0)
    model = kind(shape()).eval()
    if family == "gemma3-vision":
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
    return model


def fresh(family):
    return copy.deepcopy(built(family))


def batch(family):
    """Rows of unequal length, padded right; an image or a class each where the family has them."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 90, (3, 12), generator=generator)
    mask = torch.arange(12).lt(torch.tensor([[12], [7], [10]])).long()
    ids, labels = ids * mask, ids.masked_fill(mask == 0, -100)
    labels[:, :2] = -100
    if family == "classifier":
        labels = torch.tensor([0, 2, 1])
    rows = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if family == "gemma3-vision":
        ids[:, 1:5], labels[:, 1:5] = IMAGE_TOKEN, -100
        rows["token_type_ids"] = ids.eq(IMAGE_TOKEN).long()
        rows["pixel_values"] = torch.randn(3, 3, 28, 28, generator=generator)
    return rows


def config(family, **changes):
    task = "SEQ_CLS" if family == "classifier" else "CAUSAL_LM"
    settings = {"r": 4, "target_modules": TARGETS[family], "num_experts": 3, "task_type": task}
    return AlphaLoraConfig(**(settings | changes))


def adapted(family, base=None, coefficient=COEFFICIENT, **changes):
    """The model with random experts: three a module, five in block 1, one without a router."""
    base = fresh(family) if base is None else base
    if "target_modules" not in changes:
        probe = get_peft_model(copy.deepcopy(base), config(family))
        counts = {name: 5 if ".1." in name else 3 for name in layers(probe)}
        counts[list(counts)[1]] = 1
        changes |= {"num_experts": counts, "target_modules": None}
    torch.manual_seed(3)
    settings = {"init_weights": False, "aux_loss_coef": coefficient}
    return get_peft_model(base, config(family, **(settings | changes)))


def layers(model):
    return {m.module_name: m for m in model.modules() if isinstance(m, AlphaLoraLayer)}


def outputs(model, family):
    with torch.no_grad():
        return model.eval()(**batch(family)).logits


def assert_close(got, want, atol=0.0):
    torch.testing.assert_close(got, want, rtol=0, atol=atol)


def assert_layers_add_the_reference(model, family):
    """Every layer's output is its base layer's and the experts', one token after the other."""
    seen = []
    for layer in layers(model).values():
        layer.register_forward_hook(lambda layer, args, out: seen.append((layer, args[0], out)))
    outputs(model, family)
    assert {layer.module_name for layer, _, _ in seen} == set(layers(model))
    for layer, x, out in seen:
        experts = layer.num_experts["default"]
        added = reference.expert_mixture(
            x,
            layer.alphalora_A["default"],
            layer.alphalora_B["default"],
            layer.alphalora_router["default"] if experts > 1 else None,
            num_experts=experts,
            rank=4,
            top_k=layer.top_k["default"],
            scaling=4.0,
        )
        assert added.abs().max() > 1e-3
        assert_close(out, layer.base_layer(x) + added, atol=1e-4)


@pytest.mark.usefixtures("combinations")
@pytest.mark.parametrize(
    "family",
    [
        pytest.param("llama", marks=pytest.mark.works("Base models", "Llama")),
        pytest.param("qwen2", marks=pytest.mark.works("Base models", "Qwen 2")),
        pytest.param("qwen3", marks=pytest.mark.works("Base models", "Qwen 3")),
        pytest.param("mistral", marks=pytest.mark.works("Base models", "Mistral")),
        pytest.param("gemma3", marks=pytest.mark.works("Base models", "Gemma 3")),
        pytest.param("phi3", marks=pytest.mark.works("Base models", "Phi 3", "fused layers")),
        pytest.param("gpt2", marks=pytest.mark.works("Base models", "GPT-2", "Conv1D")),
        pytest.param("qwen2-moe", marks=pytest.mark.works("Base models", "Qwen 2 MoE")),
        pytest.param("gemma3-vision", marks=pytest.mark.works("Base models", "Gemma 3 and images")),
        pytest.param("classifier", marks=pytest.mark.works("Base models", "sequence classifiers")),
    ],
)
def test_the_blocks_get_experts_that_start_as_the_identity_and_add_the_plain_references(family):
    before = outputs(fresh(family), family)
    new = get_peft_model(fresh(family), config(family))
    for leaf in LEAVES[family]:
        blocks = [block_name(name) for name in layers(new) if name.endswith(f".{leaf}")]
        assert [block.rpartition(".")[2] for block in blocks] == ["0", "1"], leaf
    assert len(layers(new)) == 2 * len(LEAVES[family])
    assert_close(outputs(new, family), before)
    model = adapted(family)
    assert {layer.num_experts["default"] for layer in layers(model).values()} == {1, 3, 5}
    assert not torch.allclose(outputs(model, family), before)
    assert_layers_add_the_reference(model, family)


def half_a_step(family):
    """The batch as the first of two micro-batches with as many targets each."""
    data = batch(family)
    labels = data["labels"] if family == "classifier" else data["labels"][:, 1:]
    return data | {"num_items_in_batch": 2 * labels.ne(-100).sum()}


def training_gradients(family, coefficient=COEFFICIENT, **changes):
    model = adapted(family, coefficient=coefficient, **changes).train()
    model(**half_a_step(family)).loss.backward()
    return gradients(model)


def reference_gradients(family, **changes):
    """Gradient of the model's loss and the load-balancing loss, token by token."""
    plain = adapted(family, coefficient=0.0, **changes).train()
    with router_inputs(plain) as seen:
        loss = plain(**half_a_step(family)).loss
    blocks = defaultdict(list)
    for layer, x in seen:
        text = "vision_tower" not in layer.module_name
        mask = batch(family)["attention_mask"] if text else torch.ones(x.shape[:-1])
        router, top_k = layer.alphalora_router["default"], layer.top_k["default"]
        aux = reference.load_balancing(x, router, top_k=top_k, mask=mask)
        blocks[block_name(layer.module_name)].append(aux)
    total = sum(sum(losses) / len(losses) for losses in blocks.values())
    (loss + 0.5 * COEFFICIENT * total).backward()
    return gradients(plain)


@every_family
def test_the_gradient_of_the_load_balancing_loss_is_that_of_the_plain_reference(family):
    want = reference_gradients(family)
    assert_same(training_gradients(family), want)
    without = training_gradients(family, coefficient=0.0)
    changes = [(want[n] - without[n]).norm() / want[n].norm() for n in want if "router" in n]
    assert max(changes) > 0.05, "the loss must matter for this test to"


@every_family
def test_a_step_of_training_moves_the_adapter_alone_and_comes_back(family, tmp_path):
    model = adapted(family)
    before = copy.deepcopy(model.state_dict())
    model.train()
    model(**batch(family)).loss.backward()
    torch.optim.AdamW(model.parameters(), lr=1e-2).step()
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}
    heads = {name for name in moved if "alphalora_" not in name}
    head = "base_model.model.score.modules_to_save.default.weight"
    assert heads == ({head} if family == "classifier" else set())
    expected = outputs(model, family)
    with model.disable_adapter():
        assert_close(outputs(model, family), outputs(fresh(family), family))
    model.save_pretrained(tmp_path)
    assert_close(outputs(PeftModel.from_pretrained(fresh(family), tmp_path), family), expected)


@pytest.mark.usefixtures("combinations")
@pytest.mark.works("Quantised bases", "bitsandbytes 4-bit (nf4)")
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gpt2"])
def test_a_base_in_nf4_is_adapted_trained_and_opened_again(family, tmp_path):
    master = in_nf4(family)
    model = adapted(family, copy.deepcopy(master))
    quantised = [isinstance(m.base_layer, bnb.nn.Linear4bit) for m in layers(model).values()]
    assert len(quantised) == 2 * len(LEAVES[family]) and all(quantised)
    assert_layers_add_the_reference(model, family)
    model.train()
    model(**batch(family)).loss.backward()
    assert all(g.isfinite().all() and g.any() for g in gradients(model).values())
    expected = outputs(model, family)
    with model.disable_adapter():
        assert_close(outputs(model, family), outputs(copy.deepcopy(master), family))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(master), tmp_path)
    assert_close(outputs(loaded, family), expected)


def in_nf4(family):
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    with tempfile.TemporaryDirectory() as folder:
        built(family).save_pretrained(folder)
        model = FAMILIES[family][0].from_pretrained(
            folder,
            dtype=torch.float32,
            quantization_config=hf.BitsAndBytesConfig(load_in_4bit=True, **options),
        )
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # Some CPUs repack it in an eval forward, and round it when it is then saved.
            module.support_avx512bf16_for_cpu = False
    return model.eval()


@pytest.mark.works("Base models", "Qwen 2 MoE", "attention and shared expert")
@pytest.mark.refused("Base models", "stacked experts of a MoE base")
def test_routed_experts_of_a_moe_base_are_refused_and_the_shared_one_is_not():
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\.experts\.down_proj is a stacked"):
        adapted("qwen2-moe", target_modules=["q_proj", "down_proj"])
    model = adapted("qwen2-moe", target_modules=["q_proj", "shared_expert.down_proj"])
    assert {n.split(".", 3)[3] for n in layers(model)} == {
        "self_attn.q_proj",
        "mlp.shared_expert.down_proj",
    }


@pytest.mark.works("Base models", "Gemma 3 and images", "its language model")
@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": r"model\.language_model\..*_proj"},
        {"target_modules": "all-linear", "exclude_modules": r"model\.vision_tower\..*"},
        {"target_modules": [f"language_model.layers.{i}.mlp.up_proj" for i in (0, 1)]},
    ],
    ids=["regex", "exclude_modules", "names"],
)
def test_the_language_model_alone_gets_experts(changes):
    model = adapted("gemma3-vision", **changes).train()
    assert layers(model) and all(".language_model." in name for name in layers(model))
    data = batch("gemma3-vision")
    loss = model(**data).loss
    other = model(**(data | {"pixel_values": data["pixel_values"] + 1})).loss
    assert abs(loss - other) > 1e-3, "the images must matter"
    loss.backward()
    assert all(p.grad is None or "lora_" in n for n, p in model.named_parameters())


@pytest.mark.works("Base models", "Gemma 3 and images", "its language model")
def test_routers_of_the_vision_tower_count_every_patch_and_not_the_padding_of_the_text():
    names = [f"vision_tower.encoder.layers.{i}.mlp.fc1" for i in (0, 1)]
    targets = {"target_modules": [*names, "language_model.layers.0.mlp.up_proj"]}
    got = training_gradients("gemma3-vision", **targets)
    assert_same(got, reference_gradients("gemma3-vision", **targets))
