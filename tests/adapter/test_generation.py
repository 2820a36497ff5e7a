"""Greedy generation with a saved adapter against one token after the other, recomputed whole."""

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, pipeline

from axolotl_alphalora.adapter import find_balancer
from axolotl_alphalora.adapter.usage import UsageMeter
from helpers.balancing import adapted
from helpers.models import save_tiny_model

PROMPTS = ["hello world, hello", "world", "he said: 1, 2, 3, 4"]
TOKENS = 8
NF4 = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
)
GREEDY = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved adapter whose experts matter, and the base that its config names."""
    root = tmp_path_factory.mktemp("generation")
    save_tiny_model(root / "base")
    model = adapted(AutoModelForCausalLM.from_pretrained(root / "base"))
    for name, parameter in model.named_parameters():
        if "alphalora_B" in name:
            parameter.data.mul_(4)
    model.peft_config["default"].base_model_name_or_path = str(root / "base")
    model.save_pretrained(root / "adapter")
    return root / "adapter"


@pytest.fixture(scope="module", params=[None, NF4], ids=["fp32", "nf4"])
def model(request, folder):
    options = {} if request.param is None else {"quantization_config": request.param}
    return AutoPeftModelForCausalLM.from_pretrained(folder, **options).eval()


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder.parent / "base", padding_side="left")


def token_by_token(model, ids):
    """What a plain loop adds to one prompt: no cache, no padding, no batch, no end token."""
    for _ in range(TOKENS):
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, -1]
        logits[model.config.eos_token_id] = -torch.inf
        ids = torch.cat([ids, logits.argmax().reshape(1, 1)], dim=1)
    return ids[0, -TOKENS:].tolist()


@pytest.fixture(scope="module")
def expected(model, tokenizer):
    rows = [
        token_by_token(model, tokenizer(prompt, return_tensors="pt").input_ids)
        for prompt in PROMPTS
    ]
    with model.disable_adapter():
        first = tokenizer(PROMPTS[0], return_tensors="pt").input_ids
        assert token_by_token(model, first) != rows[0], "the adapter must matter"
    return rows


@pytest.mark.works("PEFT", "generation from a saved adapter", "batches, left padding, cache, nf4")
@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
def test_a_left_padded_batch_gives_each_prompt_the_reference_s_tokens(
    model, tokenizer, expected, cache
):
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    assert batch.attention_mask[:, 0].tolist() == [0, 0, 1]
    out = model.generate(**batch, **GREEDY, use_cache=cache)
    assert out[:, -TOKENS:].tolist() == expected


@pytest.mark.works("PEFT", "generation from a saved adapter", "batches, left padding, cache, nf4")
def test_a_single_prompt_gives_the_reference_s_tokens(model, tokenizer, expected):
    for prompt, want in zip(PROMPTS, expected, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        assert model.generate(**ids, **GREEDY)[0, -TOKENS:].tolist() == want


@pytest.mark.works("PEFT", "transformers pipelines", "text-generation, batched")
def test_a_pipeline_gives_the_reference_s_tokens(model, tokenizer, expected):
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, batch_size=2)
    rows = pipe(PROMPTS, **GREEDY, return_tensors=True)
    assert [row["generated_token_ids"][-TOKENS:] for (row,) in rows] == expected


def test_neither_generation_nor_a_pass_without_labels_observes_anything(model, tokenizer):
    balancer = find_balancer(model)
    balancer.usage = {"train": UsageMeter(), "eval": UsageMeter()}
    balancer.record = None  # so that a call fails
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    try:
        assert model(**batch).loss is None
        model.generate(**batch, **GREEDY)
    finally:
        del balancer.record
        balancer.usage = {}
    assert balancer.pop("train") is None and balancer.pop("eval") is None
