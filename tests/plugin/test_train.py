"""`axolotl train` for real, on CPU: what a run leaves behind, and what it starts from."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import axolotl_alphalora.adapter  # noqa: F401
from axolotl_alphalora.allocation import Plan


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def assert_equal(left: Path, right: Path) -> None:
    a, b = weights(left), weights(right)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def losses(run, checkpoint: int) -> list[float]:
    return [row["loss"] for row in run.history(checkpoint) if "loss" in row]


@pytest.fixture(scope="module")
def plain(host, tmp_path_factory):
    """An uninterrupted run of six steps; several tests look at it."""
    return host.train(tmp_path_factory.mktemp("plain"), max_steps=6, save_steps=3)


@pytest.mark.works("Verbs", "`train`, through accelerate")
@pytest.mark.works("Host versions", "Axolotl 0.21")
def test_the_real_command_line_through_accelerate(host, tmp_path):
    config = host.write(tmp_path, max_steps=2)
    done = subprocess.run(
        [Path(sys.executable).with_name("axolotl"), "train", str(config)],
        cwd=tmp_path,
        env=host.env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_the_saved_adapter_embeds_the_plan_and_opens_with_plain_peft(host, plain):
    config = json.loads((plain.out / "adapter_config.json").read_text())
    plan = Plan.from_dict(config["plan"])
    assert config["num_experts"] == plan.counts
    assert plan.total_experts == 6
    assert plan.weights["source"] == "safetensors"
    assert config["task_type"] == "CAUSAL_LM"
    base = AutoModelForCausalLM.from_pretrained(host.workspace / "tiny")
    model = PeftModel.from_pretrained(base, plain.out)
    b = [p for n, p in model.named_parameters() if "alphalora_B" in n]
    routers = [p for n, p in model.named_parameters() if "alphalora_router" in n]
    assert len(routers) == 14
    assert all(p.abs().sum() > 0 for p in b)


def test_losses_fall_and_the_balance_is_logged_apart(plain):
    history = plain.history(6)
    train = [row for row in history if "loss" in row]
    evaluations = [row for row in history if "eval_loss" in row]
    assert train[-1]["loss"] < train[0]["loss"]
    assert evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]
    # Two blocks with routers: 2 at perfect balance, 6 if one of three experts takes all.
    assert all(2 - 1e-3 < row["alphalora/aux_loss"] < 6 for row in train)
    assert all(2 - 1e-3 < row["eval_alphalora/aux_loss"] < 6 for row in evaluations)
    assert not any("alphalora/aux_loss" in row for row in evaluations)


@pytest.mark.works(
    "Seeing and exporting", "router statistics in the log (entropy, load, dead experts, gates)"
)
def test_the_log_says_what_the_routers_do(plain):
    names = {"router_entropy", "top_gate", "load_cv", "load_max", "dead_experts"}
    for row in plain.history(6):
        prefix = {"loss": "", "eval_loss": "eval_"}.get(next(k for k in row if "loss" in k))
        if prefix is None:
            continue
        found = {k: v for k, v in row.items() if "alphalora/" in k and "aux_loss" not in k}
        assert found.keys() == {f"{prefix}alphalora/{name}" for name in names}
        assert 0 < found[f"{prefix}alphalora/router_entropy"] <= 1
        assert 1 <= found[f"{prefix}alphalora/load_max"] <= 1.5  # 3 experts, of which 2 each token
        assert 0.5 <= found[f"{prefix}alphalora/top_gate"] <= 1


@pytest.mark.works("Seeing and exporting", "a section on the experts in the run's model card")
def test_the_model_card_is_the_host_s_and_ours(plain):
    card = (plain.out / "README.md").read_text()
    assert "See axolotl config" in card and card.startswith("---\nlibrary_name: peft")
    assert card.count("## Experts (AlphaLoRA)") == 1
    assert "42 experts on 14 linear layers of 2 blocks" in card
    assert "## Experts (AlphaLoRA)" in (plain.out / "checkpoint-6" / "README.md").read_text()


def test_the_loss_does_not_contain_the_auxiliary_loss(host, plain, tmp_path):
    block = {"experts_per_block": 3, "aux_loss_coef": 100.0}
    other = host.train(tmp_path, max_steps=1, save_steps=1, alphalora=block)
    first = [row for row in plain.history(6) if "loss" in row][0]
    again = [row for row in other.history(1) if "loss" in row][0]
    assert again["loss"] == first["loss"]
    # B is zero at the start, so only the auxiliary loss moves the routers: its size is the
    # coefficient's.
    assert again["grad_norm"] > 100 * first["grad_norm"] / 10


@pytest.mark.works("Verbs", "`train` resumed (`auto_resume_from_checkpoints`)")
def test_stop_and_resume_gives_the_weights_of_the_uninterrupted_run(host, plain, tmp_path):
    shutil.copytree(plain.out / "checkpoint-3", tmp_path / "out" / "checkpoint-3")
    resumed = host.train(tmp_path, max_steps=6, save_steps=3, auto_resume_from_checkpoints=True)
    assert "experts per module as saved in" in resumed.log
    assert_equal(plain.out, resumed.out)
    assert losses(resumed, 6) == losses(plain, 6)


def test_a_run_with_the_same_seed_is_the_same_run(host, plain, tmp_path):
    again = host.train(tmp_path, max_steps=3, save_steps=3)
    assert_equal(again.out, plain.out / "checkpoint-3")


def test_the_best_checkpoint_is_restored_with_its_experts(host, tmp_path):
    # The loss falls, so by calling more of it better the best checkpoint is not the last.
    run = host.train(
        tmp_path,
        max_steps=3,
        save_steps=1,
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
    )
    assert_equal(run.out, run.out / "checkpoint-1")
    last = weights(run.out / "checkpoint-3")
    assert not all(torch.equal(w, last[name]) for name, w in weights(run.out).items())


def test_sample_packing(host, tmp_path):
    run = host.train(
        tmp_path, sample_packing=True, pad_to_sequence_len=True, max_steps=3, save_steps=3
    )
    falling = losses(run, 3)
    assert falling[-1] < falling[0]
    assert all(row["alphalora/aux_loss"] > 2 - 1e-3 for row in run.history(3) if "loss" in row)


def test_a_saved_plan_is_used_as_it_is(host, plain, tmp_path):
    plan = Plan.from_dict(json.loads((plain.out / "adapter_config.json").read_text())["plan"])
    plan.save(tmp_path / "plan.json")
    run = host.train(tmp_path, max_steps=1, save_steps=1, alphalora={"plan": "plan.json"})
    assert "AlphaLoRA: spectra" not in run.log
    config = json.loads((run.out / "adapter_config.json").read_text())
    assert config["num_experts"] == plan.counts


def test_a_quantised_run_is_planned_from_the_full_precision_files(host, tmp_path):
    base = tmp_path / "binary"
    shutil.copytree(host.workspace / "tiny", base)
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    run = host.train(tmp_path, base_model=str(base), load_in_4bit=True, max_steps=1, save_steps=1)
    weights = json.loads((run.out / "adapter_config.json").read_text())["plan"]["weights"]
    assert (weights["source"], weights["dtype"]) == ("bin", "float32")
    assert weights["quantization"] is None


def test_a_quantised_base_is_planned_from_the_loaded_model(host, tmp_path):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantised = AutoModelForCausalLM.from_pretrained(
        host.workspace / "tiny",
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
    )
    base = tmp_path / "quantised"
    shutil.copytree(host.workspace / "tiny", base)
    quantised.save_pretrained(base)
    run = host.train(tmp_path, base_model=str(base), max_steps=1, save_steps=1)
    assert "quantised is quantised (bitsandbytes)" in run.log
    weights = json.loads((run.out / "adapter_config.json").read_text())["plan"]["weights"]
    assert (weights["source"], weights["quantization"]) == ("live", "bnb 4-bit")


@pytest.mark.parametrize("reentrant", [False, True])
def test_dpo_with_checkpointing_trains_the_experts_and_their_balance(host, tmp_path, reentrant):
    rows = tmp_path / "pairs.jsonl"
    with rows.open("w") as file:
        for i in range(16):
            row = {"prompt": f"Repeat {i}", "chosen": f"word{i}", "rejected": f"other{i}"}
            file.write(json.dumps(row) + "\n")
    run = host.train(
        tmp_path,
        rl="dpo",
        datasets=[
            {
                "path": str(rows),
                "ds_type": "json",
                "split": "train",
                "type": {
                    "field_prompt": "prompt",
                    "field_chosen": "chosen",
                    "field_rejected": "rejected",
                    "prompt_format": "{prompt}",
                    "chosen_format": "{chosen}",
                    "rejected_format": "{rejected}",
                },
            }
        ],
        dataset_prepared_path=str(tmp_path / "prepared"),
        val_set_size=0.25,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
        max_steps=2,
        save_steps=2,
    )
    training = [row for row in run.history(2) if "loss" in row]
    evaluation = [row for row in run.history(2) if "eval_loss" in row]
    assert all(row["alphalora/aux_loss"] > 2 - 1e-3 for row in training)
    assert all(row["eval_alphalora/aux_loss"] > 2 - 1e-3 for row in evaluation)
    assert any("alphalora_B" in n and w.abs().sum() > 0 for n, w in weights(run.out).items())
