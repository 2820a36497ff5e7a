"""The text part of a multimodal base: its names there, and what happens without them."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from axolotl_alphalora.export import export_adapter
from axolotl_alphalora.export.lora import placed
from axolotl_alphalora.probe import ask_model, judge, make_probe
from helpers.balancing import adapted
from helpers.exporting import rows
from helpers.models import word_tokenizer

PROMPTS = ["w5 w9 w33", "w60 w2 w81 w40"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The text model, the whole one with the same weights, and the latter's directory."""
    folder = tmp_path_factory.mktemp("multimodal") / "base"
    torch.manual_seed(0)
    text = Gemma3TextConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=0.2,
    )
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    whole = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text.to_dict(), vision_config=vision.to_dict())
    )
    alone = Gemma3ForCausalLM(text)
    whole.model.language_model.load_state_dict(alone.model.state_dict())
    whole.save_pretrained(folder)
    return alone.eval(), whole.eval(), folder


def exported(bases, folder, **options):
    alone, _, base = bases
    model = adapted(alone)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "alphalora_B" in name:
                parameter *= 4
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder / "adapter")
    found = export_adapter(
        model.eval(),
        folder / "adapter",
        folder / "lora",
        calibration=rows(4, 1),
        held_out=rows(2, 2),
        **options,
    )
    return found, folder / "lora"


def answered(model):
    return [ask_model(model.eval(), word_tokenizer(), prompt, 6) for prompt in PROMPTS]


@pytest.mark.works("Seeing and exporting", "`export --prefix`: the text part of a multimodal base")
def test_the_whole_model_finds_the_names_with_the_prefix(bases, tmp_path):
    alone, whole, _ = bases
    (tmp_path / "plain").mkdir()
    plain, path = exported(bases, tmp_path / "plain")
    lora = PeftModel.from_pretrained(alone, path).eval()
    probe = make_probe(lora, word_tokenizer(), PROMPTS, base_model="x", method="lora", tokens=6)
    lora.unload()
    assert any("export again with --prefix model.language_model" in x for x in plain.servers())
    (tmp_path / "prefixed").mkdir()
    named, path = exported(bases, tmp_path / "prefixed", prefix="model.language_model")
    assert not any("export again with --prefix" in line for line in named.servers())
    config = json.loads((path / "adapter_config.json").read_text())
    assert all(name.startswith("model.language_model.layers.") for name in config["target_modules"])
    # vLLM passes over names that the whole model has not. PEFT says so.
    with pytest.raises(ValueError, match="not found in the base model"):
        PeftModel.from_pretrained(whole, tmp_path / "plain" / "lora")
    assert judge(probe, answered(whole)).served == "base"
    assert judge(probe, answered(PeftModel.from_pretrained(whole, path))).served == "adapter"


def test_names_of_other_parts_are_refused():
    assert placed("lm_head", "model.language_model") == "lm_head"
    for name in ("transformer.h.0.attn.c_attn", "model.language_model.layers.0.mlp.up_proj"):
        with pytest.raises(ValueError, match="--prefix model.language_model is for modules of"):
            placed(name, "model.language_model")
