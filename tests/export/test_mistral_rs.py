"""mistral.rs loads an export with ranks that differ, and answers as PEFT does."""

import json

import mistralrs
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from axolotl_alphalora.probe import ask_model
from helpers.exporting import random_updates, with_lora
from helpers.models import save_tiny_model, tiny_llama

PROMPTS = ("hello world", "hell", "a b c")
TOKENS = 12


def for_mistral_rs(base, folder):
    """Links to a base, with a config of its own: mistral.rs reads `rope_theta`, which
    transformers 5 writes into `rope_parameters`."""
    folder.mkdir()
    for file in base.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    config = json.loads((base / "config.json").read_text())
    theta = config["rope_parameters"]["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": theta}))
    return folder


def answers(runner, adapter):
    for prompt in PROMPTS:
        request = mistralrs.CompletionRequest(
            prompt=prompt,
            model="default",
            max_tokens=TOKENS,
            temperature=0.0,
            top_k=1,
            adapter=adapter,
        )
        yield runner.send_completion_request(request).choices[0].text


@pytest.mark.works("Seeing and exporting", "exported LoRAs in mistral.rs, ranks that differ")
def test_mistral_rs_answers_as_peft_does(tmp_path):
    save_tiny_model(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tiny_llama(
        vocab_size=len(tokenizer), max_position_embeddings=512, initializer_range=0.3
    ).save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base").eval()
    alone = [ask_model(base, tokenizer, prompt, TOKENS).text for prompt in PROMPTS]
    lora = with_lora(base, random_updates(base), tmp_path / "lora")
    wanted = [ask_model(lora, tokenizer, prompt, TOKENS).text for prompt in PROMPTS]
    assert len(set(wanted) - set(alone)) == len(PROMPTS)
    runner = mistralrs.Runner(
        which=mistralrs.Which.Lora(
            model_id=str(for_mistral_rs(tmp_path / "base", tmp_path / "links")),
            adapters=[mistralrs.LoraAdapter("mine", str(tmp_path / "lora"))],
            arch=mistralrs.Architecture.Llama,
            dtype=mistralrs.ModelDType.F32,
        ),
        no_paged_attn=True,
    )
    assert list(answers(runner, "mine")) == wanted
    assert list(answers(runner, None)) == alone


def test_the_links_leave_the_base_alone(tmp_path):
    save_tiny_model(tmp_path / "base")
    before = (tmp_path / "base" / "config.json").read_text()
    links = for_mistral_rs(tmp_path / "base", tmp_path / "links")
    assert (tmp_path / "base" / "config.json").read_text() == before
    assert "rope_theta" in json.loads((links / "config.json").read_text())
    assert torch.equal(
        LlamaForCausalLM.from_pretrained(links).lm_head.weight,
        LlamaForCausalLM.from_pretrained(tmp_path / "base").lm_head.weight,
    )
