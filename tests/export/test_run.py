"""The whole export on a tiny model: what is on disk is what was measured."""

import copy
import json
import math
from functools import partial
from importlib import import_module

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)

from axolotl_alphalora.adapter import AlphaLoraConfig
from axolotl_alphalora.evaluation import Moments, load_adapted, load_base
from axolotl_alphalora.export import export_adapter
from axolotl_alphalora.export.factors import mixed
from axolotl_alphalora.report.adapter_sentences import exported as sentences
from helpers.balancing import adapted
from helpers.exporting import (
    check_price,
    divergence,
    exported,
    log_probabilities,
    routed,
    rows,
)
from helpers.models import tiny_llama_config


@pytest.mark.usefixtures("combinations")
@pytest.mark.works(
    "Seeing and exporting", "`alphalora export`: what is written is what was measured"
)
@pytest.mark.parametrize(
    "options",
    [{}, {"method": "mean-gate"}, {"rank": 5}, {"same_rank": True}, {"rank": 4, "same_rank": True}],
    ids=str,
)
def test_the_price_is_that_of_the_files_by_an_independent_computation(saved, tmp_path, options):
    """Plain PEFT opens the files on a fresh base; the divergence is summed up in fp64."""
    model, found = exported(saved, tmp_path / "lora", **options)
    lora = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(saved / "base"), tmp_path / "lora"
    ).eval()
    divergence, losses, tokens = 0.0, dict.fromkeys(("routed", "export", "base"), 0.0), 0
    with torch.no_grad():
        for sample in rows(8, 2):
            p, q = log_probabilities(model, sample), log_probabilities(lora, sample)
            with lora.disable_adapter():
                base = log_probabilities(lora, sample)
            answers = sample.inputs["labels"][0, 1:]
            answers = answers[answers != -100]
            divergence += float((p.exp() * (p - q)).sum())
            for key, of in (("routed", p), ("export", q), ("base", base)):
                losses[key] -= float(of[torch.arange(len(answers)), answers].sum())
            tokens += len(answers)
    assert found.divergence.tokens == tokens
    assert found.divergence.kl == pytest.approx(divergence / tokens, rel=1e-3, abs=1e-6)
    for key, value in losses.items():
        assert getattr(found.divergence, f"loss_{key}") == pytest.approx(value / tokens, rel=1e-4)
    record = json.loads((tmp_path / "lora" / "alphalora_export.json").read_text())
    assert record["price"]["kl"] == found.divergence.kl
    assert record["price"]["perplexity_export"] == pytest.approx(
        math.exp(losses["export"] / tokens)
    )
    ranks = {name: b.weight.shape[1] for name, b in _b_of(lora).items()}
    assert ranks == dict(found.ranks)
    if "rank" in options:
        assert max(ranks.values()) == options["rank"]
    if options.get("same_rank"):
        assert len(set(ranks.values())) == 1 and not lora.peft_config["default"].rank_pattern


def _b_of(lora):
    return {
        name.removeprefix("base_model.model."): module.lora_B["default"]
        for name, module in lora.named_modules()
        if hasattr(module, "lora_B")
    }


def test_layers_with_one_expert_are_exact(saved, tmp_path):
    model, _ = exported(saved, tmp_path / "lora")
    lora = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(saved / "base"), tmp_path / "lora"
    )
    name = "model.layers.1.mlp.up_proj"
    x = torch.randn(7, 64)
    got, want = (m.get_base_model().get_submodule(name).eval()(x) for m in (lora, model))
    torch.testing.assert_close(got, want)


@pytest.mark.works("Seeing and exporting", "PEFT's `merge_and_unload` of the exported LoRA")
def test_the_export_merges(saved, tmp_path):
    exported(saved, tmp_path / "lora")
    lora = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(saved / "base"), tmp_path / "lora"
    ).eval()
    ids = rows(1, 3)[0].inputs["input_ids"]
    with torch.no_grad():
        before = lora(input_ids=ids).logits
        merged = lora.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=ids).logits, before, rtol=0, atol=1e-4)


def test_the_fit_is_nearer_than_the_mean_gates(saved, tmp_path):
    """What the default rests on."""
    _, fitted = exported(saved, tmp_path / "fitted")
    _, mean = exported(saved, tmp_path / "mean", method="mean-gate")
    assert fitted.divergence.kl < mean.divergence.kl


def test_a_bad_export_is_not_written(saved, tmp_path):
    with pytest.raises(ValueError, match="--max-kl 1e-09 allows, so nothing was written"):
        exported(saved, tmp_path / "lora", max_kl=1e-9)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_is_not_finite_is_not_written(saved, tmp_path):
    model = routed(saved)
    layer = model.get_base_model().get_submodule("model.layers.0.mlp.up_proj")
    layer.alphalora_B["default"].data[0, 0] = float("inf")
    with pytest.raises(ValueError, match="measured as NaN or infinity"):
        export_adapter(
            model,
            saved / "adapter",
            tmp_path / "lora",
            calibration=rows(2, 1),
            held_out=rows(2, 2),
            max_kl=0.05,
        )
    assert list(tmp_path.iterdir()) == []


def test_one_expert_that_was_compressed_is_not_called_exact(saved, tmp_path):
    _, found = exported(saved, tmp_path / "lora", rank=2)
    assert found.approximated == len(found.ranks) == 13
    _, whole = exported(saved, tmp_path / "whole")
    assert whole.approximated == 12


def test_layers_that_no_row_reaches_are_named(saved, tmp_path):
    model = routed(saved)
    found = export_adapter(
        model, saved / "adapter", tmp_path / "lora", calibration=[], held_out=rows(2, 2), rank=3
    )
    assert len(found.unseen) == 12
    assert any("no row reached 12 of them" in line for line in sentences(found))


def test_a_tied_head_comes_with_a_warning_and_without_its_base(tmp_path):
    config = tiny_llama_config(tie_word_embeddings=True)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(tmp_path / "base"),
        AlphaLoraConfig(num_experts=2, target_modules=["q_proj", "lm_head"], init_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    found = export_adapter(
        model, tmp_path / "adapter", tmp_path / "lora", calibration=rows(2, 1), held_out=rows(2, 2)
    )
    assert list(found.tied) == ["lm_head"]
    assert any("merging would change the embeddings" in line for line in sentences(found))
    keys = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert all(".lora_" in key for key in keys)


VARIANTS = {
    "top-1": {"top_k": 1},
    "all experts": {"top_k": 9},
    "rsLoRA and ranks": {
        "use_rslora": True,
        "rank_pattern": {"model.layers.0.self_attn.q_proj": 7},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_price_is_right_for_every_routing(tiny_llama, tmp_path, variant):
    model = adapted(tiny_llama, **VARIANTS[variant])
    model.save_pretrained(tmp_path / "adapter")
    base = partial(copy.deepcopy, tiny_llama)
    check_price(model.eval(), base, tmp_path / "adapter", tmp_path / "lora")


def test_the_price_is_right_for_conv1d(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    base = GPT2LMHeadModel(config)
    settings = AlphaLoraConfig(num_experts=3, target_modules=["c_attn", "c_fc"], init_weights=False)
    model = get_peft_model(copy.deepcopy(base), settings)
    model.save_pretrained(tmp_path / "adapter")
    fresh = partial(copy.deepcopy, base)
    check_price(model.eval(), fresh, tmp_path / "adapter", tmp_path / "lora")


def test_added_tokens_are_made_room_for(tiny_llama, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "base")
    larger = copy.deepcopy(tiny_llama)
    larger.resize_token_embeddings(101)
    model = adapted(larger, modules_to_save=["embed_tokens", "lm_head"])
    model.save_pretrained(tmp_path / "adapter")
    again = load_adapted(LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    ids = torch.tensor([[5, 99, 100]])
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def test_the_model_is_left_as_it_was(saved, tmp_path):
    model, _ = exported(saved, tmp_path / "lora")
    fresh = routed(saved)
    ids = rows(1, 3)[0].inputs["input_ids"]
    assert list(model.peft_config) == ["default"]
    assert torch.equal(model(input_ids=ids).logits, fresh(input_ids=ids).logits)


@pytest.mark.works("Seeing and exporting", "`alphalora export` on a 4-bit base (nf4)")
def test_on_a_4_bit_base(saved, tmp_path):
    def base():
        return load_base(str(saved / "base"), load_in_4bit=True)

    model = load_adapted(base(), saved / "adapter")
    check_price(model, base, saved / "adapter", tmp_path / "lora")


def test_modules_trained_in_full_go_with_it(tiny_llama, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "base")
    model = adapted(
        LlamaForCausalLM.from_pretrained(tmp_path / "base"), modules_to_save=["lm_head"]
    )
    head = model.base_model.model.lm_head.modules_to_save["default"]
    head.weight.data += 0.1
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    model = load_adapted(LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    found = export_adapter(
        model,
        tmp_path / "adapter",
        tmp_path / "lora",
        calibration=rows(4, 1),
        held_out=rows(2, 2),
    )
    lora = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "lora").eval()
    assert torch.equal(lora.base_model.model.lm_head.weight, head.weight)
    assert found.divergence.kl == pytest.approx(divergence(model, lora, rows(2, 2)), rel=1e-3)


@pytest.mark.works(
    "Seeing and exporting", "LoRA, to experts (`init_from`), to LoRA: the same update"
)
@pytest.mark.parametrize("options", [{}, {"rank": 4}, {"method": "mean-gate"}], ids=str)
def test_a_lora_comes_back_from_its_copies(tiny_llama, tmp_path, options):
    tiny_llama.save_pretrained(tmp_path / "base")

    def base():
        return LlamaForCausalLM.from_pretrained(tmp_path / "base")

    torch.manual_seed(5)
    settings = LoraConfig(
        r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=False, use_rslora=True
    )
    get_peft_model(base(), settings).save_pretrained(tmp_path / "start")
    config = AlphaLoraConfig(
        r=4, num_experts=3, target_modules="all-linear", init_from=str(tmp_path / "start")
    )
    get_peft_model(base(), config).save_pretrained(tmp_path / "adapter")
    export_adapter(
        load_adapted(base(), tmp_path / "adapter"),
        tmp_path / "adapter",
        tmp_path / "end",
        calibration=rows(8, 1),
        held_out=rows(2, 2),
        **options,
    )
    merged = [
        PeftModel.from_pretrained(base(), tmp_path / name).merge_and_unload().state_dict()
        for name in ("start", "end")
    ]
    before = base().state_dict()
    for name, weight in merged[0].items():
        if name.endswith("_proj.weight"):
            assert (weight - before[name]).abs().max() > 1e-3
        torch.testing.assert_close(merged[1][name], weight, rtol=0, atol=2e-5, msg=name)


@pytest.mark.parametrize("options", [{}, {"rank": 5}, {"rank": 4, "same_rank": True}])
def test_record_and_card_say_who_takes_what_was_written(saved, tmp_path, options):
    _, found = exported(saved, tmp_path / "lora", **options)
    ranks = json.loads((tmp_path / "lora" / "alphalora_export.json").read_text())["ranks"]
    text = (tmp_path / "lora" / "README.md").read_text()
    record = json.loads((tmp_path / "lora" / "alphalora_export.json").read_text())
    assert record["servers"] == found.servers()
    assert " ".join(found.servers()) in text
    differ = len(set(ranks.values())) > 1
    assert ("do not convert it" in text) == differ == ("same_rank" not in options)
    assert f"--max-lora-rank {16 if max(ranks.values()) > 8 else 8}" in text


def test_small_products_are_computed_on_one_thread_and_the_model_on_all(saved, tmp_path):
    seen = {"model": set(), "moments": set(), "factors": set()}
    model = routed(saved)

    def noting(key, function):
        def noted(*args, **kwargs):
            seen[key].add(torch.get_num_threads())
            return function(*args, **kwargs)

        return noted

    model.base_model.register_forward_pre_hook(noting("model", lambda *_: None))
    building = import_module("axolotl_alphalora.export.factors")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Moments, "add", noting("moments", Moments.add))
            patch.setattr(building, "mixed", noting("factors", mixed))
            export_adapter(
                model,
                saved / "adapter",
                tmp_path / "lora",
                calibration=rows(2, 1),
                held_out=rows(2, 2),
            )
        assert seen == {"model": {2}, "moments": {1}, "factors": {1}}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
