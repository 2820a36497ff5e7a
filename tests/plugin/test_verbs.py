"""The other verbs of Axolotl on a trained adapter, and a YAML that contradicts it."""

import json
import re

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

FRESH = "runs a fresh AlphaLoRA adapter"


@pytest.fixture(scope="module")
def trained(host, tmp_path_factory):
    return host.train(tmp_path_factory.mktemp("trained"), max_steps=4, save_steps=4)


def flat(log: str) -> str:
    """A log without the line breaks and padding that a logger adds."""
    return " ".join(log.split())


def test_evaluate_reports_the_loss_of_the_trained_adapter(host, trained, tmp_path):
    run = host.run(tmp_path, "evaluate", "--lora-model-dir", str(trained.out), max_steps=4)
    assert run.code == 0, run.log[-4000:]
    assert FRESH not in run.log
    last = [row["eval_loss"] for row in trained.history(4) if "eval_loss" in row][-1]
    found = re.findall(r"eval_loss: ([0-9.]+)", run.log)
    assert float(found[-1]) == pytest.approx(last, rel=1e-4)
    assert "eval_alphalora/aux_loss" in run.log


def test_settings_that_the_yaml_leaves_out_are_the_adapters(host, trained, tmp_path):
    bare = {"alphalora": ..., "lora_r": ..., "lora_alpha": ..., "lora_target_linear": ...}
    run = host.run(tmp_path, "evaluate", "--lora-model-dir", str(trained.out), **bare)
    assert run.code == 0, run.log[-4000:]
    last = [row["eval_loss"] for row in trained.history(4) if "eval_loss" in row][-1]
    found = re.findall(r"eval_loss: ([0-9.]+)", run.log)
    assert float(found[-1]) == pytest.approx(last, rel=1e-4)


def test_evaluate_without_an_adapter_warns_loudly(host, tmp_path):
    run = host.run(tmp_path, "evaluate")
    assert run.code == 0, run.log[-4000:]
    assert f"axolotl evaluate was given no trained adapter: it {FRESH}" in flat(run.log)


def test_training_does_not_warn(trained):
    assert FRESH not in trained.log


def test_inference_with_and_without_the_adapter(host, trained, tmp_path):
    run = host.run(tmp_path, "inference", "--lora-model-dir", str(trained.out), typed="Repeat 1\n")
    assert FRESH not in run.log
    assert "Repeat 1" in run.log
    run = host.run(tmp_path, "inference", typed="")
    assert f"axolotl inference was given no trained adapter: it {FRESH}" in flat(run.log)


def test_merge_lora_is_refused_with_the_reason(host, trained, tmp_path):
    run = host.run(tmp_path, "merge-lora", "--lora-model-dir", str(trained.out))
    assert run.code != 0
    assert "merge_lora" in run.log and "no single" in flat(run.log)
    assert not (tmp_path / "out" / "merged").exists()


@pytest.mark.parametrize("key", ["lora_model_dir", "resume_from_checkpoint"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_r": 8}, "lora_r is 8 in the YAML and 4 in the adapter"),
        (
            {"alphalora": {"experts_per_block": 5}},
            "budget is total_experts 10 over 2 blocks .* total_experts 6",
        ),
        (
            {"alphalora": {"experts_per_block": 3, "top_k": 1}},
            "alphalora.top_k is 1 in the YAML and 2 in the adapter",
        ),
        (
            {
                "alphalora": {
                    "experts_per_block": 3,
                    "allocation": {"strategy": "alphalora", "estimator": "hill"},
                }
            },
            "allocation.estimator is hill in the YAML and xmin_peak in the adapter",
        ),
        (
            {"lora_target_linear": False, "lora_target_modules": ["q_proj"]},
            r"model.layers.0.mlp.down_proj has \d experts in the adapter and is no target",
        ),
    ],
)
def test_a_yaml_that_contradicts_a_saved_adapter_names_the_difference(
    host, trained, tmp_path, key, changes, message
):
    run = host.run(tmp_path, "train", **changes, **{key: str(trained.out / "checkpoint-4")})
    assert run.code != 0
    assert f"contradicts the adapter in {key}: {trained.out}/checkpoint-4" in flat(run.log)
    assert re.search(message, flat(run.log))
    assert "Loading weights" not in run.log, "it should fail before the model is loaded"


def test_training_goes_on_from_a_saved_adapter(host, trained, tmp_path):
    run = host.train(tmp_path, lora_model_dir=str(trained.out), max_steps=1, save_steps=1)
    first = [row["eval_loss"] for row in run.history(1) if "eval_loss" in row][0]
    last = [row["eval_loss"] for row in trained.history(4) if "eval_loss" in row][-1]
    assert first == pytest.approx(last, rel=1e-5)
    assert "AlphaLoRA: spectra" not in run.log


def test_another_methods_adapter_is_refused(host, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(host.workspace / "tiny")
    lora = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path / "lora")
    run = host.run(tmp_path, "train", lora_model_dir=str(tmp_path / "lora"))
    assert run.code != 0
    assert "holds a LORA adapter, not an AlphaLoRA one" in flat(run.log)


def test_a_directory_without_an_adapter_is_refused(host, tmp_path):
    run = host.run(tmp_path, "train", lora_model_dir=str(tmp_path / "nothing"))
    assert "has no readable adapter_config.json. The directory does not exist." in flat(run.log)
    assert run.code != 0


def test_a_plan_for_other_settings_is_refused(host, trained, tmp_path):
    plan = json.loads((trained.out / "adapter_config.json").read_text())["plan"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    block = {"plan": "plan.json"}
    run = host.run(tmp_path, "train", alphalora=block, lora_r=8)
    assert "alphalora.plan plan.json does not fit this run: the plan is for rank 4" in flat(run.log)
    (tmp_path / "plan.json").write_text("{}")
    run = host.run(tmp_path, "train", alphalora=block)
    assert "plan.json: format is None" in flat(run.log)
    assert run.code != 0


def test_an_impossible_budget_comes_before_the_model_is_loaded(host, tmp_path):
    run = host.run(tmp_path, "train", alphalora={"total_experts": 1})
    assert run.code != 0
    assert "total_experts is 1, but the least that min_experts 1 allows is 2" in flat(run.log)
    assert "Loading weights" not in run.log


def test_other_adapters_are_left_alone(host, tmp_path):
    kernels = dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False)
    run = host.train(tmp_path, adapter="lora", alphalora=..., max_steps=1, save_steps=1, **kernels)
    assert run.spied["bases"] == {"Linear": 14}
    config = json.loads((run.out / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert "AlphaLoRA" not in run.log
