"""`alphalora.init_from`: a run that grows a plain LoRA, from the YAML to its first step."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from axolotl_alphalora.adapter import AlphaLoraConfig
from axolotl_alphalora.plugin import args
from axolotl_alphalora.plugin.loading import Allocation, adapter_config
from helpers.settings import validate

WEIGHTS = "adapter_model.safetensors"


def save_lora(base, folder, **changes):
    options = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(**options | changes)
    )
    model.save_pretrained(folder)


@pytest.mark.works("Verbs", "`train` from a plain LoRA (`alphalora.init_from`)")
def test_the_first_loss_is_the_loras_and_a_checkpoint_needs_it_no_more(host, tmp_path):
    base, lora = host.workspace / "tiny", tmp_path / "lora"
    whole, part = tmp_path / "whole", tmp_path / "part"
    save_lora(base, lora)
    options = {
        "alphalora": {"experts_per_block": 3, "init_from": str(lora)},
        "gradient_accumulation_steps": 1,
        "lora_dropout": 0,
        "max_steps": 2,
        "save_steps": 1,
        "val_set_size": 0,
        "eval_steps": ...,
    }
    whole.mkdir()
    part.mkdir()
    run = host.train(whole, **options)
    (batch,) = torch.load(whole / "step.pt", weights_only=True)["passes"]
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
    before = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        plain = before(**inputs).loss.item()
        want = PeftModel.from_pretrained(before, lora)(**inputs).loss.item()
    assert run.history(1)[0]["loss"] == pytest.approx(want, abs=1e-4)
    assert abs(plain - want) > 1e-2
    assert "init_from" not in json.loads((run.out / "adapter_config.json").read_text())

    shutil.rmtree(lora)
    shutil.copytree(run.out / "checkpoint-1", part / "out" / "checkpoint-1")
    resumed = host.train(part, **options, auto_resume_from_checkpoints=True)
    assert "init_from is not read" in resumed.log
    again, first = (load_file(folder / WEIGHTS) for folder in (resumed.out, run.out))
    assert all(torch.equal(again[name], first[name]) for name in first)


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alphalora": {"init_split": "svd"}}, "`alphalora.init_from` names none"),
        ({"alphalora": {"init_from": ""}}, "init_from"),
        ({"alphalora": {"init_from": "x", "init_split": "x"}}, "'copy' or 'svd'"),
        (
            {"alphalora": {"init_from": "./lora"}, "lora_model_dir": "./out"},
            "`alphalora.init_from` starts a new adapter.*`lora_model_dir` continues one",
        ),
    ],
    ids=["split alone", "empty", "split", "lora_model_dir"],
)
def test_the_yaml_cannot_contradict_itself(changes, message):
    with pytest.raises(ValidationError, match=message):
        validate(**changes)


@pytest.mark.usefixtures("plugin")
def test_what_runs_a_trained_adapter_does_not_read_what_it_began_with(
    monkeypatch, tiny_llama, tmp_path
):
    monkeypatch.setattr(args, "running_verb", lambda: "evaluate")
    config = AlphaLoraConfig(target_modules=["q_proj"])
    get_peft_model(tiny_llama, config).save_pretrained(tmp_path)
    block = {"init_from": "./lora", "init_split": "svd", "top_k": 3}
    cfg = validate(alphalora=block, lora_model_dir=str(tmp_path))
    assert cfg.alphalora.init_from is None and cfg.alphalora.top_k == 3
    assert validate(alphalora=block).alphalora.init_from == "./lora"


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("lora", "changes", "message"),
    [
        (None, {}, "alphalora.init_from: lora is no directory"),
        ({"r": 8}, {}, r"experts of rank 8 .*r \(lora_r\) to 8"),
        ({}, {"alphalora": {"top_k": 1}}, "top_k: 1"),
        ({}, {"lora_target_linear": None, "lora_target_modules": ["v_proj"]}, "is no target"),
        ({"modules_to_save": ["lm_head"]}, {}, r"lm_head to modules_to_save \(lora_modules"),
    ],
    ids=["missing", "rank", "top_k", "targets", "modules_to_save"],
)
def test_a_lora_that_does_not_fit_is_refused_before_the_model_is_loaded(
    host, tmp_path, lora, changes, message
):
    base = host.workspace / "tiny"
    if lora is not None:
        save_lora(base, tmp_path / "lora", **lora)
    block = {"allocation": "uniform", "init_from": "lora", **changes.pop("alphalora", {})}
    cfg = validate(base_model=str(base), output_dir="./out", alphalora=block, **changes)
    with pytest.raises(ValueError, match=message):
        Allocation(cfg)


@pytest.mark.usefixtures("plugin")
def test_what_trl_wraps_gets_the_lora_in_its_config(host, tmp_path):
    base = host.workspace / "tiny"
    save_lora(base, tmp_path / "lora")
    block = {"allocation": "uniform", "init_from": "lora", "init_split": "svd", "top_k": 5}
    cfg = validate(base_model=str(base), output_dir="./out", alphalora=block, rl="dpo")
    config = adapter_config(cfg, Allocation(cfg), AutoModelForCausalLM.from_pretrained(base))
    assert (config.init_from, config.init_split) == ("lora", "svd")
