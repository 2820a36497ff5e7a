"""The plan file: round trip, refusals, and a save that leaves the old file or the new one."""

import json
import os
from copy import deepcopy
from pathlib import Path

import pytest

from axolotl_alphalora.allocation import (
    ModulePlan,
    Plan,
    PlanError,
    UnitPlan,
)
from axolotl_alphalora.mixture import Mixture
from axolotl_alphalora.settings import MatrixQuality
from helpers.allocating import LLAMA_2_7B, model, with_sensitivities
from helpers.allocating import plan as planned


def module(name, experts, measured, sensitivity=None):
    shape = (64, 32)
    return ModulePlan(
        name=name,
        shape=shape,
        experts=experts,
        rank=8,
        sensitivity=sensitivity,
        quality=MatrixQuality(name, shape, *measured),
    )


@pytest.fixture
def plan():
    return Plan(
        base_model="some/model",
        weights={"source": "safetensors", "dtype": "bfloat16", "revision": None},
        strategy={
            "name": "alphalora",
            "package": "axolotl-alphalora 0.1.0",
            "options": {"estimator": "xmin_peak", "beta": 2.5, "list": [1, {"a": None}]},
        },
        sample={"tasks": {"sums": 3, "rhymes": 2}, "seed": 0, "digest": "00ff"},
        budget={
            "kind": "total_parameters",
            "asked": 5000,
            "spent": 3168,
            "unspent": 1832,
            "min_experts": 0,
            "max_experts": None,
            "optimizer": None,
        },
        top_k=2,
        rank=8,
        units=(
            UnitPlan(name="layers.0", score=2.1, experts=1, interval=None),
            UnitPlan(name="layers.1", score=None, experts=1.5, interval=(2.0, 2.5)),
        ),
        modules=(
            module("layers.0.q", 1, (2.1, 0.25, 0.5, 9, 32, 32), {"sums": 0.5, "rhymes": 2.0}),
            module("layers.1.q", 3, (2.5, 0.5, 0.0625, 17, 32, 31, "why")),
            ModulePlan(name="layers.1.k", shape=(16, 32), experts=0, rank=8),
        ),
    )


@pytest.fixture
def ranks():
    """A plan whose numbers are spent on rank."""
    return planned("mola", model(2), options={"shape": "13"}, rank=4, spend="rank")


def test_a_plan_survives_the_file(plan, tmp_path):
    path = tmp_path / "new" / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan
    assert Plan.from_dict(plan.to_dict()) == plan


def scribble(value):
    """Change every list and object in a JSON value."""
    for inner in list(value.values() if isinstance(value, dict) else value):
        if isinstance(inner, dict | list):
            scribble(inner)
    value.clear()


def test_a_plan_shares_nothing_with_its_json(plan):
    before, document = deepcopy(plan), plan.to_dict()
    read = Plan.from_dict(document)
    scribble(document)
    assert plan == read == before


def test_the_file_states_format_version_and_totals(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    document = json.loads((tmp_path / "plan.json").read_text())
    assert document["format"] == "axolotl-alphalora-plan"
    assert document["version"] == 2
    assert document["total_experts"] == 2.5
    assert document["module_experts"] == 4
    whole = [document["budget"]["asked"], *(unit["experts"] for unit in document["units"])]
    assert list(map(str, whole)) == ["5000", "1", "1.5"]
    assert document["trainable_parameters"] == 8 * 96 + 3 * (8 * 96 + 32)


def test_counts_include_modules_left_alone(plan):
    assert plan.counts == {"layers.0.q": 1, "layers.1.q": 3, "layers.1.k": 0}


def test_numbers_of_experts_and_of_ranks(plan, ranks):
    assert plan.numbers == plan.counts
    assert plan.rank_pattern == {}
    assert set(ranks.counts.values()) == {1}
    assert sorted(set(ranks.numbers.values())) == [1, 3]
    assert ranks.rank_pattern == {name: 12 for name in ranks.counts if "layers.1." in name}
    assert (ranks.total_experts, ranks.module_experts) == (4, 12)
    assert Plan.from_dict(json.loads(json.dumps(ranks.to_dict()))) == ranks


def test_a_block_counts_the_mean_of_its_modules(plan):
    assert plan.block_numbers == {"layers.0": 1, "layers.1": 1.5}


@pytest.mark.parametrize(
    ("experts", "parameters"), [(160, 105_635_840), (256, 169_017_344), (128, 84_508_672)]
)
def test_parameters_of_llama_2_7b(experts, parameters):
    shapes = model(32, LLAMA_2_7B)
    made = planned("uniform", shapes, budget={"total_experts": experts}, rank=8)
    assert made.trainable_parameters == parameters == experts * 660_224
    again = planned("uniform", shapes, budget={"total_parameters": parameters}, rank=8)
    assert again.counts == made.counts
    assert again.budget["unspent"] == 0


def test_experts_spent_on_rank_have_no_router():
    shapes = model(32, LLAMA_2_7B)
    made = planned("uniform", shapes, budget={"total_experts": 160}, rank=8, spend="rank")
    assert made.trainable_parameters == 160 * 624_640


SHAPE = {"top_k": 0.25, "segments": 4, "router_rank": 3, "share_a": True}


def test_the_mixtures_shape_stands_together_in_the_file(plan):
    keys = list(plan.to_dict())
    first = keys.index("top_k")
    assert keys[first : first + 4] == list(SHAPE)
    assert {key: plan.to_dict()[key] for key in SHAPE} == {
        "top_k": 2,
        "segments": 1,
        "router_rank": None,
        "share_a": False,
    }


def test_a_shape_survives_the_file_and_decides_the_parameters(tmp_path):
    made = planned("mola", model(2), options={"shape": "13"}, rank=8, **SHAPE)
    made.save(tmp_path / "plan.json")
    document = json.loads((tmp_path / "plan.json").read_text())
    assert {key: document[key] for key in SHAPE} == SHAPE
    assert Plan.load(tmp_path / "plan.json") == made
    assert made.mixture == Mixture(**SHAPE)
    by_hand = 0
    for (out, width), n in zip(made.shapes.values(), made.counts.values(), strict=True):
        by_hand += 8 * width + out * 8 * n + 3 * width + 4 * n * 3
    assert made.trainable_parameters == document["trainable_parameters"] == by_hand


def test_a_plan_of_an_older_release_has_whole_experts(plan):
    document = plan.to_dict()
    for key in ("segments", "router_rank", "share_a"):
        del document[key]
    assert Plan.from_dict(document) == plan


@pytest.mark.parametrize("shape", [{"segments": 2}, {"router_rank": 2}, {"share_a": True}], ids=str)
def test_a_rank_has_no_mixture_to_shape(ranks, shape):
    (name,) = shape
    with pytest.raises(ValueError, match=f"spend: rank .* nothing for {name} to shape"):
        planned("mola", model(2), options={"shape": "13"}, rank=4, spend="rank", **shape)
    with pytest.raises(PlanError, match=f"spend: rank .* nothing for {name} to shape"):
        Plan.from_dict(ranks.to_dict() | shape)


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
        (["version"], 3, "version is 3, but this axolotl-alphalora reads plans of version 2: upg"),
        (["version"], "1", "version is '1', but this axolotl-alphalora reads plans of version"),
        (["version"], 1, "version is 1, but .* version 2: the plan has been edited"),
        (["base_model"], None, "base_model must be a string"),
        (["rank"], 0, "rank must be an integer of at least 1"),
        (["top_k"], True, "top_k must be a finite number, not True"),
        (["top_k"], 0, "top_k must be at least 1, not 0"),
        (["top_k"], 1.0, r"top_k must be a whole number .* or a share .* in \(0, 1\), not 1\.0"),
        (["segments"], 0, "segments must be an integer of at least 1"),
        (["segments"], 3, "rank is 8, which segments: 3 cannot cut into equal parts"),
        (["segments"], 2, "trainable_parameters is 3168, but the counts in the plan give"),
        (["router_rank"], 1.5, "router_rank must be an integer"),
        (["share_a"], 1, "share_a must be true or false, not 1"),
        (["surprise"], 1, "surprise is not a key of a plan"),
        (["weights"], [], "weights must be an object"),
        (["weights"], {}, r"weights\.source is missing"),
        (["strategy", "name"], "", r"strategy\.name must be a string"),
        (["strategy", "package"], None, r"strategy\.package must be a string"),
        (["strategy", "options"], [], r"strategy\.options must be an object"),
        (["strategy", "beta"], 2.5, r"strategy\.beta is not a key"),
        (["sample"], [], "sample must be an object"),
        (["sample", "tasks"], [], r"sample\.tasks must be an object"),
        (["sample", "tasks", "sums"], 0, r"sample\.tasks\.sums must be an integer of at least 1"),
        (["sample", "seed"], -1, r"sample\.seed must be an integer of at least 0"),
        (["sample", "digest"], "", r"sample\.digest must be a string"),
        (["budget", "kind"], "gold", r"budget\.kind must be one of total_experts, total_param"),
        (["budget", "asked"], None, r"budget\.asked must be a finite number"),
        (["budget", "max_experts"], 2.5, r"budget\.max_experts must be an integer"),
        (["budget", "optimizer"], 3, r"budget\.optimizer must be a string"),
        (["budget", "typo"], 2, r"budget\.typo is not a key"),
        (["spend"], "time", "spend must be one of experts, rank, not 'time'"),
        (["units"], {}, "units must be an array"),
        (["units", 1, "experts"], -1, r"units\[1\]\.experts must be at least 0, not -1"),
        (["units", 1, "experts"], "1", r"units\[1\]\.experts must be a finite number"),
        (["units", 1, "score"], "2", r"units\[1\]\.score must be a finite number"),
        (["units", 1, "interval"], [1.0], r"units\[1\]\.interval\[1\] is missing"),
        (["units", 1, "name"], "layers.0", r"units\[1\]\.name 'layers.0' is listed twice"),
        (["modules", 0], 3, r"modules\[0\] must be an object"),
        (["modules", 2, "experts"], -2, r"modules\[2\]\.experts must be .* not -2"),
        (["modules", 2, "experts"], 1.0, r"modules\[2\]\.experts must be an integer"),
        (["modules", 1, "name"], "layers.0.q", r"modules\[1\]\.name 'layers.0.q' is listed twice"),
        (["modules", 0, "shape"], [64], r"modules\[0\]\.shape\[1\] is missing"),
        (["modules", 0, "shape"], [64, 8, 8], r"modules\[0\]\.shape has too many items"),
        (["modules", 0, "shape"], [64, 0], r"modules\[0\]\.shape\[1\] must be an integer of"),
        (["modules", 0, "alpha"], float("inf"), r"modules\[0\]\.alpha must be a finite number"),
        (["modules", 0, "rank"], 0, r"modules\[0\]\.rank must be an integer of at least 1"),
        (["modules", 0, "sensitivity"], 1, r"modules\[0\]\.sensitivity must be an object"),
        (
            ["modules", 0, "sensitivity", "sums"],
            "1",
            r"modules\[0\]\.sensitivity\.sums must be a finite number",
        ),
        (["total_experts"], 5, "total_experts is 5, but the counts in the plan give 2.5"),
        (["module_experts"], 5, "module_experts is 5, but the counts in the plan give 4"),
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
    "path", [["rank"], ["budget", "min_experts"], ["units", 0, "score"], ["modules", 1, "alpha"]]
)
def test_a_missing_key_is_named(plan, path):
    document = json.loads(json.dumps(plan.to_dict()))
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    del parent[path[-1]]
    with pytest.raises(PlanError, match=rf"{path[-1]} is missing"):
        Plan.from_dict(document)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["units", 1, "experts"], 3, r"units\[1\]\.experts is 3, but its modules have 1\.5"),
        (["units", 1, "name"], "layers.7", "units are neither the modules' blocks, nor parts"),
        (["modules", 1, "rank"], 16, r"modules\[1\] has 3 experts of rank 16, which is not how"),
    ],
)
def test_parts_of_a_plan_that_do_not_agree_are_refused(plan, path, value, message):
    document = json.loads(json.dumps(plan.to_dict()))
    _set(document, path, value)
    with pytest.raises(PlanError, match=message):
        Plan.from_dict(document)


@pytest.mark.parametrize(("key", "value"), [("rank", 6), ("experts", 2)])
def test_ranks_that_are_no_multiple_or_of_several_experts_are_refused(ranks, key, value):
    document = json.loads(json.dumps(ranks.to_dict()))
    document["modules"][0][key] = value
    with pytest.raises(PlanError, match=r"modules\[0\] has . experts of rank ., which is not how"):
        Plan.from_dict(document)


@pytest.mark.parametrize("granularity", ["block", "group", "module"])
def test_units_of_any_granularity_survive(granularity):
    shapes = model(2)
    made = planned(
        "sensitivity",
        shapes,
        options={"granularity": granularity},
        evidence=with_sensitivities(shapes, range(1, 7)),
    )
    assert Plan.from_dict(json.loads(json.dumps(made.to_dict()))) == made


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
        assert json.loads(Path(source).read_text())["version"] == 2
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    plan.save(path)
    assert seen == [False]
    assert list(tmp_path.iterdir()) == [path]


def test_a_number_json_cannot_hold_is_not_written(plan, tmp_path):
    broken = plan.model_copy(
        update={"strategy": {"name": "x", "package": "y", "options": {"beta": float("nan")}}}
    )
    with pytest.raises(ValueError, match="JSON"):
        broken.save(tmp_path / "plan.json")
    assert list(tmp_path.iterdir()) == []
