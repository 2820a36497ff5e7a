"""Every allocation strategy from the YAML to a trained adapter, and a plan made once and reused."""

import json
import math
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

import axolotl_alphalora.adapter  # noqa: F401
from axolotl_alphalora.allocation import Plan

SHORT = {"max_steps": 1, "save_steps": 1, "val_set_size": 0, "eval_steps": ...}
SENSITIVITY = {"strategy": "sensitivity", "samples": 6}


def adapter_config(run) -> dict:
    return json.loads((run.out / "adapter_config.json").read_text())


def plan_of(run) -> Plan:
    return Plan.from_dict(adapter_config(run)["plan"])


def by_task(host, folder: Path) -> Path:
    """The host's data with a task in every row."""
    rows = [json.loads(line) for line in (host.workspace / "data.jsonl").read_text().splitlines()]
    path = folder / "tasks.jsonl"
    text = (json.dumps(row | {"task": ["odd", "even"][i % 2]}) for i, row in enumerate(rows))
    path.write_text("\n".join(text) + "\n")
    return path


@pytest.mark.parametrize(
    ("block", "blocks"),
    [
        ({"allocation": "mola:13"}, [1, 3]),
        ({"allocation": "depth:3-1"}, [3, 1]),
        ({"allocation": "uniform", "total_experts": 4}, [2, 2]),
        ({"allocation": {"strategy": "counts", "experts": [2, 0]}}, [2, 0]),
        ({"allocation": {"strategy": "alphalora", "rounding": "published"}}, None),
    ],
    ids=["mola", "depth", "uniform", "counts", "alphalora published"],
)
def test_a_strategy_trains_with_its_counts(host, tmp_path, block, blocks):
    run = host.train(tmp_path, alphalora=block, **SHORT)
    plan = plan_of(run)
    assert adapter_config(run)["num_experts"] == plan.counts
    if blocks is None:
        assert plan.strategy["options"]["rounding"] == "published"
        assert sum(plan.block_numbers.values()) == 10
    else:
        assert list(plan.block_numbers.values()) == blocks
    base = AutoModelForCausalLM.from_pretrained(host.workspace / "tiny")
    model = PeftModel.from_pretrained(base, run.out)
    trained = {name.removeprefix("base_model.model.") for name, _ in model.named_modules()}
    for name, count in plan.counts.items():
        assert (f"{name}.alphalora_A" in trained) == (count > 0)


def test_the_budget_can_be_spent_on_rank(host, tmp_path):
    block = {"allocation": "mola:13", "spend": "rank"}
    run = host.train(tmp_path, alphalora=block, **SHORT)
    config = adapter_config(run)
    assert set(config["num_experts"].values()) == {1}
    ranks = config["rank_pattern"]
    assert set(ranks.values()) == {12} and all(".1." in name for name in ranks)
    resumed = host.train(
        tmp_path, alphalora=block, auto_resume_from_checkpoints=True, **SHORT | {"max_steps": 2}
    )
    assert "experts per module as saved in" in resumed.log
    assert adapter_config(resumed)["rank_pattern"] == ranks


@pytest.mark.works("Mixtures", "`alphalora.segments`", "from the YAML to a continued adapter")
@pytest.mark.works("Mixtures", "`alphalora.top_k` as a share of a layer's experts")
@pytest.mark.works("Mixtures", "`alphalora.router_rank`")
@pytest.mark.works("Mixtures", "`alphalora.share_a`")
def test_every_shape_of_a_mixture_trains_together_and_goes_on(host, tmp_path):
    shape = {"top_k": 0.5, "segments": 2, "router_rank": 3, "share_a": True}
    block = {"allocation": "mola:13", "router_lr_ratio": 0.5, **shape}
    two = SHORT | {"max_steps": 2, "save_steps": 2}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first = host.train(tmp_path / "first", alphalora=block, **two)
    plan, config = plan_of(first), adapter_config(first)
    assert {key: config[key] for key in shape} == shape
    assert {key: getattr(plan, key) for key in shape} == shape
    assert "each cut into 2 of rank 2" in (first.out / "README.md").read_text()
    losses = [row["loss"] for row in first.history(2) if "loss" in row]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    base = AutoModelForCausalLM.from_pretrained(host.workspace / "tiny")
    model = PeftModel.from_pretrained(base, first.out, is_trainable=True)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == plan.trainable_parameters
    assert all(p.abs().sum() > 0 for name, p in trained.items() if "alphalora_B" in name)
    bare = {"lora_r": ..., "lora_alpha": ..., "lora_target_linear": ..., "alphalora": ...}
    second = host.train(tmp_path / "second", lora_model_dir=str(first.out), **bare, **two)
    assert {key: adapter_config(second)[key] for key in shape} == shape


def test_a_budget_in_memory_is_kept(host, tmp_path):
    block = {"memory_mib": 0.4, "min_experts": 0}
    plan = plan_of(host.train(tmp_path, alphalora=block, **SHORT))
    budget = plan.budget
    assert (budget["kind"], budget["asked"], budget["optimizer"]) == (
        "memory_mib",
        0.4,
        "adamw_torch",
    )
    # AdamW in fp32: weight, gradient and two moments.
    assert budget["spent"] == plan.trainable_parameters * 16 / 2**20 <= 0.4


@pytest.mark.parametrize(
    "changes",
    [{"sample_packing": True}, {"load_in_4bit": True, "gradient_checkpointing": True}],
    ids=["packing", "4-bit and checkpointing"],
)
def test_sensitivity_is_measured_on_the_runs_own_data(host, tmp_path, changes):
    block = {"allocation": SENSITIVITY, "experts_per_block": 3}
    data = [{"path": str(by_task(host, tmp_path)), "ds_type": "json", "type": "alpaca"}]
    run = host.train(tmp_path, alphalora=block, datasets=data, **SHORT, **changes)
    plan = plan_of(run)
    assert plan.sample["tasks"] == {"odd": 3, "even": 3}
    assert (plan.module_experts, plan.weights["source"]) == (2 * 7 * 3, "live")
    values = [value for row in plan.modules for value in row.sensitivity.values()]
    assert min(values) > 0
    quantised = plan.weights["quantization"]
    assert quantised == ("bnb 4-bit" if "load_in_4bit" in changes else None)


@pytest.mark.works("Allocation", "explained variance of the inputs (`eva`), on nf4 too")
@pytest.mark.parametrize("changes", [{}, {"load_in_4bit": True}], ids=["fp32", "4-bit"])
def test_explained_variance_is_measured_on_the_runs_own_data(host, tmp_path, changes):
    block = {"allocation": {"strategy": "eva", "samples": 6}, "experts_per_block": 2}
    data = [{"path": str(by_task(host, tmp_path)), "ds_type": "json", "type": "alpaca"}]
    settings = {"alphalora": block, "datasets": data, "gradient_checkpointing": True, **SHORT}
    run = host.train(tmp_path, **settings, **changes)
    plan = plan_of(run)
    assert "AlphaLoRA: activations" in run.log
    assert plan.sample["tasks"] == {"odd": 3, "even": 3}
    assert (plan.module_experts, plan.weights["source"]) == (2 * 7 * 2, "live")
    assert adapter_config(run)["num_experts"] == plan.counts
    for module in plan.modules:
        assert 0 < sum(module.explained) <= 1
        assert list(module.explained) == sorted(module.explained, reverse=True)
    quantised = plan.weights["quantization"]
    assert quantised == ("bnb 4-bit" if "load_in_4bit" in changes else None)
    host.write(tmp_path, **settings, **changes)
    made = host.command(tmp_path, "alphalora", "plan", "config.yml", "--output", "plan.json")
    assert made.code == 0, made.log[-4000:]
    assert Plan.load(tmp_path / "plan.json") == plan
    resumed = host.train(
        tmp_path,
        **settings | changes | {"max_steps": 2},
        auto_resume_from_checkpoints=True,
    )
    assert "AlphaLoRA: activations" not in resumed.log


def test_a_plan_made_once_gives_the_same_counts(host, tmp_path):
    block = {"allocation": SENSITIVITY, "experts_per_block": 3}
    settings = {"alphalora": block, **SHORT}
    first = host.train(tmp_path, **settings)
    whole = plan_of(first)
    assert "AlphaLoRA: gradients" in first.log
    host.write(tmp_path, **settings)
    made = host.command(tmp_path, "alphalora", "plan", "config.yml", "--output", "plan.json")
    assert made.code == 0, made.log[-4000:]
    saved = Plan.load(tmp_path / "plan.json")
    assert saved == whole
    assert not (tmp_path / "last_run_prepared").exists()
    again = host.train(tmp_path, **settings | {"alphalora": {"plan": "plan.json"}})
    assert "AlphaLoRA: gradients" not in again.log
    assert adapter_config(again)["num_experts"] == whole.counts


def test_the_papers_percentile_leaves_layers_alone(host, tmp_path):
    allocation = {**SENSITIVITY, "percentile": 50, "within": "kind"}
    plan = plan_of(host.train(tmp_path, alphalora={"allocation": allocation}, **SHORT))
    assert sorted(plan.counts.values()) == [0] * 7 + [1] * 7
    assert plan.budget["kind"] is None


def test_resume_names_an_allocation_that_contradicts(host, tmp_path):
    run = host.train(tmp_path, alphalora={"allocation": "mola:13"}, **SHORT)
    resumed = {"auto_resume_from_checkpoints": True, **SHORT, "max_steps": 2}
    for block, words in (
        ({"allocation": "mola:31"}, "allocation.shape is [3, 1] in the YAML and [1, 3]"),
        ({"allocation": "uniform"}, "allocation.strategy is uniform in the YAML and mola"),
        ({"allocation": "mola:13", "spend": "rank"}, "spend is rank in the YAML and experts"),
        ({"allocation": "mola:13", "total_experts": 4}, "total_experts 4 over 2 blocks"),
    ):
        failed = host.run(tmp_path, "train", alphalora=block, **resumed)
        assert failed.code != 0 and words in failed.log
    host.train(tmp_path, alphalora={"allocation": "mola:13"}, **resumed)
    assert (run.out / "checkpoint-2").exists()


def test_a_window_that_was_chosen_automatically_resumes(host, tmp_path):
    block = {"allocation": {"strategy": "alphalora", "estimator": "hill", "window": "auto"}}
    run = host.train(tmp_path, alphalora=block, **SHORT)
    assert plan_of(run).strategy["options"]["window"] not in (None, "auto")
    host.train(tmp_path, alphalora=block, lora_model_dir="./out", output_dir="./more", **SHORT)
    assert (tmp_path / "more" / "adapter_config.json").exists()
