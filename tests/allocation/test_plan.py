"""The plan file: round trip, refusals, and a save that leaves the old file or the new one."""

import json
import os
from pathlib import Path

import pytest

from axolotl_alphalora.allocation import (
    BlockPlan,
    ModulePlan,
    Plan,
    PlanError,
    expert_parameters,
)


@pytest.fixture
def plan():
    return Plan(
        base_model="some/model",
        weights={"source": "safetensors", "dtype": "bfloat16", "revision": None},
        strategy={"name": "alphalora", "estimator": "xmin_peak", "beta": 2.5},
        budget={"total_experts": 4, "min_experts": 1, "max_experts": None},
        top_k=2,
        rank=8,
        blocks=(BlockPlan("layers.0", 2.1, 1), BlockPlan("layers.1", None, 3)),
        modules=(
            ModulePlan("layers.0.q", (64, 32), 1, 2.1, 0.25, 0.0625, 17),
            ModulePlan("layers.1.q", (64, 32), 3),
            ModulePlan("layers.1.k", (16, 32), 0),
        ),
    )


def test_a_plan_survives_the_file(plan, tmp_path):
    path = tmp_path / "new" / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan
    assert Plan.from_dict(plan.to_dict()) == plan


def test_the_file_states_format_version_and_totals(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    document = json.loads((tmp_path / "plan.json").read_text())
    assert document["format"] == "axolotl-alphalora-plan"
    assert document["version"] == 1
    assert document["total_experts"] == 4
    assert document["trainable_parameters"] == 8 * 96 + 3 * (8 * 96 + 32)


def test_counts_include_modules_left_alone(plan):
    assert plan.counts == {"layers.0.q": 1, "layers.1.q": 3, "layers.1.k": 0}


LLAMA_2_7B_LINEARS = [*[(4096, 4096)] * 4, *[(11008, 4096)] * 2, (4096, 11008)]


@pytest.mark.parametrize(
    ("experts", "parameters"), [(160, 105_635_840), (256, 169_017_344), (128, 84_508_672)]
)
def test_parameters_of_llama_2_7b(experts, parameters):
    per_block, blocks = experts // 32, 32
    plan = Plan(
        base_model="m",
        weights={},
        strategy={},
        budget={},
        top_k=2,
        rank=8,
        blocks=tuple(BlockPlan(f"layers.{i}", None, per_block) for i in range(blocks)),
        modules=tuple(
            ModulePlan(f"layers.{i}.m{j}", shape, per_block)
            for i in range(blocks)
            for j, shape in enumerate(LLAMA_2_7B_LINEARS)
        ),
    )
    assert plan.trainable_parameters == parameters == experts * 660_224


def test_one_expert_has_no_router():
    assert expert_parameters(100, 50, experts=1, rank=4) == 4 * 150
    assert expert_parameters(100, 50, experts=2, rank=4) == 2 * 4 * 150 + 200
    assert expert_parameters(100, 50, experts=0, rank=4) == 0


def test_equal_counts_do_not_differ(plan):
    assert plan.differences(plan.counts) is None
    assert plan.differences({"layers.0.q": 1, "layers.1.q": 3}) is None


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        (
            {"layers.0.q": 1, "layers.1.q": 2},
            "module 'layers.1.q' has 3 experts in the plan, but 2 here",
        ),
        ({"layers.0.q": 1}, "module 'layers.1.q' has 3 experts in the plan, but 0 here"),
        (
            {"layers.0.q": 1, "layers.1.q": 3, "lm_head": 2},
            "module 'lm_head' has 0 experts in the plan, but 2 here",
        ),
    ],
)
def test_the_first_difference_is_a_sentence(plan, counts, sentence):
    assert plan.differences(counts) == sentence


def _set(document, path, value):
    *parents, last = path
    for key in parents:
        document = document[key]
    document[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], "other", "format is 'other'"),
        (["version"], 2, "version is 2, but this axolotl-alphalora reads plans up to version 1"),
        (["version"], "1", "version must be an integer"),
        (["version"], 0, "version must be an integer of at least 1"),
        (["base_model"], None, "base_model must be a string"),
        (["rank"], 0, "rank must be an integer of at least 1"),
        (["top_k"], True, "top_k must be an integer"),
        (["surprise"], 1, "surprise is not a key of a plan"),
        (["weights"], [], "weights must be an object"),
        (["weights"], {}, r"weights\.source is missing"),
        (["strategy", "name"], "", r"strategy\.name must be a string"),
        (["strategy", "beta"], [2.5], r"strategy\.beta must be a string, number"),
        (["strategy", "beta"], float("nan"), r"strategy\.beta must be a finite number"),
        (["budget", "max_experts"], 2.5, r"budget\.max_experts must be an integer"),
        (["budget", "typo"], 2, r"budget\.typo is not a key"),
        (["blocks"], {}, "blocks must be an array"),
        (["blocks", 1, "experts"], -1, r"blocks\[1\]\.experts must be an integer of at least 0"),
        (["blocks", 1, "score"], "2", r"blocks\[1\]\.score must be a finite number"),
        (["blocks", 1, "name"], "layers.0", r"blocks\[1\]\.name 'layers.0' is listed twice"),
        (["modules", 0], 3, r"modules\[0\] must be an object"),
        (["modules", 2, "experts"], -2, r"modules\[2\]\.experts must be .* not -2"),
        (["modules", 2, "experts"], 1.0, r"modules\[2\]\.experts must be an integer"),
        (["modules", 1, "name"], "layers.0.q", r"modules\[1\]\.name 'layers.0.q' is listed twice"),
        (["modules", 0, "shape"], [64], r"modules\[0\]\.shape must be output features"),
        (["modules", 0, "shape"], [64, 0], r"modules\[0\]\.shape\[1\] must be an integer"),
        (["modules", 0, "alpha"], float("inf"), r"modules\[0\]\.alpha must be a finite number"),
        (["total_experts"], 5, "total_experts is 5, but the counts in the plan give 4"),
        (["trainable_parameters"], 1, "trainable_parameters is 1, but"),
    ],
)
def test_a_bad_document_is_refused_by_key_path(plan, tmp_path, path, value, message):
    document = json.loads(json.dumps(plan.to_dict()))
    _set(document, path, value)
    with pytest.raises(PlanError, match=message):
        Plan.from_dict(document)
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(document))
    with pytest.raises(PlanError, match=r"bad\.json: .*" + message):
        Plan.load(file)


@pytest.mark.parametrize(
    "path", [["rank"], ["budget", "min_experts"], ["blocks", 0, "score"], ["modules", 1, "alpha"]]
)
def test_a_missing_key_is_named(plan, path):
    document = json.loads(json.dumps(plan.to_dict()))
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    del parent[path[-1]]
    with pytest.raises(PlanError, match=rf"{path[-1]} is missing"):
        Plan.from_dict(document)


def test_files_that_are_no_plans_are_named(tmp_path):
    with pytest.raises(PlanError, match=r"cannot read the plan .*absent\.json"):
        Plan.load(tmp_path / "absent.json")
    (tmp_path / "half.json").write_text('{"format": ')
    with pytest.raises(PlanError, match=r"half\.json is not JSON"):
        Plan.load(tmp_path / "half.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(PlanError, match=r"list\.json: the document must be an object"):
        Plan.load(tmp_path / "list.json")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(plan, tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    plan.save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        plan.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_appears_in_one_step(plan, tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    replace, seen = os.replace, []

    def spy(source, target):
        seen.append(path.exists())
        assert json.loads(Path(source).read_text())["version"] == 1
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    plan.save(path)
    assert seen == [False]
    assert list(tmp_path.iterdir()) == [path]


def test_a_number_json_cannot_hold_is_not_written(plan, tmp_path):
    broken = Plan(**{**vars(plan), "strategy": {"name": "alphalora", "beta": float("nan")}})
    with pytest.raises(ValueError, match="JSON"):
        broken.save(tmp_path / "plan.json")
    assert list(tmp_path.iterdir()) == []
