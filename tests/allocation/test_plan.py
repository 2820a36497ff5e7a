"""The plan file: round trip, refusals, and a save that leaves the old file or the new one."""

import json
import os
from copy import deepcopy
from pathlib import Path

import pytest

from axolotl_alphalora.allocation import (
    Plan,
    PlanError,
)
from axolotl_alphalora.mixture import Mixture
from helpers.allocating import LLAMA_2_7B, model, with_sensitivities
from helpers.allocating import plan as planned


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
