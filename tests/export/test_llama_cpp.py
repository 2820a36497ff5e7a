"""A LoRA for llama.cpp, in llama.cpp, against PEFT on the same base in full precision."""

import sys
from dataclasses import replace

import gguf
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from axolotl_alphalora.export import llama_cpp
from axolotl_alphalora.export.factors import Factors
from axolotl_alphalora.export.llama_cpp import FAMILIES, check_gguf, save_gguf
from helpers.exporting import random_updates, with_lora
from helpers.llama_cpp import VOCABULARY, greedy, served, write_base

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
RMS = ("add_layer_norm_rms_eps", 1e-6)
ROPE = ("add_rope_freq_base", 10000.0)
WINDOW = ("add_sliding_window", 64)
"""Longer than what is asked, so that it does not matter."""
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64}
BASES = {
    "gemma": (GemmaConfig(**SIZES, head_dim=16), [RMS, ROPE]),
    "gemma2": (
        Gemma2Config(**SIZES, **GEMMA),
        [RMS, ROPE, WINDOW]
        + [("add_attn_logit_softcapping", 50.0), ("add_final_logit_softcapping", 30.0)],
    ),
    "gemma3_text": (
        Gemma3TextConfig(**SIZES, **GEMMA),
        [RMS, ("add_rope_freq_base", 1e6), WINDOW],
    ),
    "gpt2": (
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=64,
            n_layer=2,
            n_head=4,
            n_positions=128,
            n_inner=256,
            initializer_range=0.2,
        ),
        [("add_layer_norm_eps", 1e-5)],
    ),
    "granite": (
        GraniteConfig(
            **SIZES,
            residual_multiplier=0.7,
            attention_multiplier=0.3,
            embedding_multiplier=2.0,
            logits_scaling=1.5,
        ),
        [
            RMS,
            ROPE,
            ("add_attention_scale", 0.3),
            ("add_embedding_scale", 2.0),
            ("add_residual_scale", 0.7),
            ("add_logit_scale", 1.5),
        ],
    ),
    "llama": (LlamaConfig(**SIZES), [RMS, ROPE]),
    "mistral": (MistralConfig(**SIZES), [RMS, ROPE]),
    "olmo2": (Olmo2Config(**SIZES), [("add_layer_norm_rms_eps", 1e-5), ROPE]),
    "phi3": (
        Phi3Config(**SIZES, pad_token_id=0),
        [("add_layer_norm_rms_eps", 1e-5), ROPE]
        + [("add_rope_scaling_orig_ctx_len", 128), ("add_sliding_window", 0)],
    ),
    "qwen2": (Qwen2Config(**SIZES), [RMS, ROPE]),
    "qwen3": (Qwen3Config(**SIZES, head_dim=16), [RMS, ROPE]),
    "smollm3": (SmolLM3Config(**SIZES, pad_token_id=0), [RMS, ("add_rope_freq_base", 2e6)]),
}
GELU = {"gemma", "gemma2", "gemma3_text", "gpt2"}
"""llama.cpp looks their activation up in a table of half precision."""
PROMPTS = ([5, 9, 33, 7], [60, 2, 2, 81, 40, 11, 93])
TOKENS = 6


def check_against_peft(server, lora, prompts=PROMPTS, tokens=TOKENS, tolerance=1e-3):
    for prompt in prompts:
        ids, logprobs = server.greedy(prompt, tokens)
        want, wanted = greedy(lora, prompt, tokens)
        assert ids == want
        assert logprobs == pytest.approx(wanted, abs=tolerance)


@pytest.mark.works("Seeing and exporting", "`export --gguf`: a LoRA for llama.cpp, by family")
@pytest.mark.parametrize("kind", FAMILIES)
def test_llama_cpp_computes_what_peft_does(tmp_path, kind):
    torch.manual_seed(0)
    config, more = BASES[kind]
    model = AutoModelForCausalLM.from_config(config).eval()
    family = FAMILIES[kind]
    base = tmp_path / "base.gguf"
    write_base(base, model, family.architecture, interleaved=family.interleaved, more=more)
    updates = random_updates(model)
    save_gguf(tmp_path / "lora.gguf", updates, model.config)
    tolerance = 5e-3 if kind in GELU else 1e-3
    with served(base) as server:
        check_against_peft(server, model, tolerance=tolerance)
        _, alone = server.greedy(PROMPTS[0], 1)
    lora = with_lora(model, updates, tmp_path / "lora", fan_in_fan_out=kind == "gpt2")
    with served(base, tmp_path / "lora.gguf") as server:
        check_against_peft(server, lora, tolerance=tolerance)
        assert abs(server.greedy(PROMPTS[0], 1)[1][0] - alone[0]) > 0.02


def test_the_rows_of_q_and_k_must_be_those_of_llama_cpp(tmp_path, monkeypatch):
    """Without it the file loads, and computes something else."""
    torch.manual_seed(0)
    config, more = BASES["llama"]
    model = AutoModelForCausalLM.from_config(config).eval()
    write_base(tmp_path / "base.gguf", model, "llama", interleaved=True, more=more)
    updates = random_updates(model)
    family = replace(FAMILIES["llama"], interleaved=False)
    monkeypatch.setitem(llama_cpp.FAMILIES, "llama", family)
    save_gguf(tmp_path / "lora.gguf", updates, model.config)
    lora = with_lora(model, updates, tmp_path / "lora")
    with served(tmp_path / "base.gguf", tmp_path / "lora.gguf") as server:
        _, logprobs = server.greedy(PROMPTS[0], 1)
    assert abs(logprobs[0] - greedy(lora, PROMPTS[0], 1)[1][0]) > 0.01


def test_half_precision_is_half_the_file_and_nearly_the_same(tmp_path):
    torch.manual_seed(0)
    config, more = BASES["qwen2"]
    model = AutoModelForCausalLM.from_config(config).eval()
    write_base(tmp_path / "base.gguf", model, "qwen2", interleaved=False, more=more)
    updates = random_updates(model)
    for dtype in ("f32", "f16"):
        save_gguf(tmp_path / dtype, updates, model.config, dtype=dtype)
    assert (tmp_path / "f16").stat().st_size < 0.6 * (tmp_path / "f32").stat().st_size
    lora = with_lora(model, updates, tmp_path / "lora")
    with served(tmp_path / "base.gguf", tmp_path / "f16") as server:
        check_against_peft(server, lora, PROMPTS[:1], tolerance=2e-2)


def test_what_the_file_says(tmp_path):
    model = AutoModelForCausalLM.from_config(BASES["llama"][0])
    updates = random_updates(model)
    save_gguf(tmp_path / "lora.gguf", updates, model.config)
    reader = gguf.GGUFReader(str(tmp_path / "lora.gguf"))
    said = {
        name: reader.fields[name].contents()
        for name in ("general.type", "general.architecture", "adapter.type", "adapter.lora.alpha")
    }
    assert said == {
        "general.type": "adapter",
        "general.architecture": "llama",
        "adapter.type": "lora",
        "adapter.lora.alpha": 0,
    }
    shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in reader.tensors}
    assert len(shapes) == 2 * len(updates) == 28
    rank = updates["model.layers.1.mlp.down_proj"].rank
    assert shapes["blk.1.ffn_down.weight.lora_a"] == (96, rank)
    assert shapes["blk.1.ffn_down.weight.lora_b"] == (rank, 64)


REFUSED = {
    "an unknown architecture": ("bloom", ["transformer.h.0.mlp.dense_h_to_4h"], "the type bloom"),
    "a module without a place": ("llama", ["model.layers.0.mlp.extra"], "model.layers.0.mlp.extra"),
    "an embedding": ("llama", ["model.embed_tokens"], "no place for a LoRA on model.embed_tokens"),
    "a tied head": ("qwen2", ["lm_head"], "no place for a LoRA on lm_head"),
}


@pytest.mark.refused("Seeing and exporting", "`export --gguf` of what llama.cpp has no place for")
@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_cannot_hold_is_refused_by_name(case):
    kind, modules, message = REFUSED[case]
    settings = {"tie_word_embeddings": True} if case == "a tied head" else {}
    config = AutoConfig.for_model(kind, **settings)
    with pytest.raises(ValueError, match=message):
        check_gguf(modules, config)


def test_whole_modules_are_refused():
    with pytest.raises(ValueError, match=r"whole modules \(lm_head\)"):
        check_gguf([], LlamaConfig(), ["lm_head"])


def test_a_head_of_its_own_and_the_text_part_of_a_larger_model_have_a_place():
    assert check_gguf(["lm_head"], LlamaConfig()) == {"lm_head": "output.weight"}
    names = check_gguf(["model.language_model.layers.1.mlp.up_proj"], Gemma3Config())
    assert list(names.values()) == ["blk.1.ffn_up.weight"]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match="pip install 'gguf>=0.17'"):
        check_gguf([], LlamaConfig())


def test_numbers_too_large_for_half_precision_are_refused(tmp_path):
    updates = {"model.layers.0.mlp.up_proj": Factors(torch.full((1, 64), 1e5), torch.ones(96, 1))}
    with pytest.raises(ValueError, match="up_proj is too large for f16"):
        save_gguf(tmp_path / "lora.gguf", updates, LlamaConfig(), dtype="f16")
