"""Plans that the first release wrote are read as they were meant."""

import json
from pathlib import Path

import pytest

from allocating import experts
from axolotl_alphalora.allocation import Plan, PlanError

STORED = Path(__file__).with_name("version1.json")
"""Written by the first release's `build_plan` and `Plan.save`."""


@pytest.fixture
def document():
    return json.loads(STORED.read_text())


def test_a_stored_plan_keeps_what_it_said(document):
    read = Plan.load(STORED)
    assert read.counts == {row["name"]: row["experts"] for row in document["modules"]}
    assert experts(read) == [2, 6]
    assert [unit.score for unit in read.units] == [2.0, 3.0]
    assert [unit.interval for unit in read.units] == [None, (2.5, 3.5)]
    for key in ("base_model", "weights", "top_k", "rank", "total_experts", "trainable_parameters"):
        assert getattr(read, key) == document[key]
    last = read.modules[-1]
    assert (last.rank, last.alpha, last.tail_size, last.note) == (8, 2.5, 4, "rank 7 of 8")


def test_a_stored_plan_says_what_the_new_fields_were(document):
    read = Plan.load(STORED)
    assert read.strategy == {
        "name": "alphalora",
        "package": "axolotl-alphalora 0.1.0",
        "options": {k: v for k, v in document["strategy"].items() if k != "name"},
    }
    assert read.budget == {
        "kind": "total_experts",
        "asked": 8,
        "spent": 8,
        "unspent": 0,
        "min_experts": 1,
        "max_experts": 6,
        "optimizer": None,
    }
    assert (read.spend, read.sample, read.rank_pattern) == ("experts", None, {})


def test_a_stored_plan_is_written_in_the_new_version(tmp_path):
    read = Plan.load(STORED)
    read.save(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["version"] == 2
    assert Plan.load(tmp_path / "plan.json") == read


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["surprise"], 1, "surprise is not a key of a plan"),
        (["units"], [], "units is not a key of a plan"),
        (["budget", "kind"], "total_experts", r"budget\.kind is not a key"),
        (["strategy"], "alphalora", "strategy must be an object"),
        (["strategy", "name"], None, r"strategy\.name must be a string"),
        (["modules"], {}, "modules must be an array"),
        (["modules", 0], 3, r"modules\[0\] must be an object"),
        (["modules", 0, "experts"], "2", r"modules\[0\]\.experts must be an integer"),
        (["modules", 0, "experts"], 3, r"\[0\]\.experts is 2, but its modules have 2\.5"),
        (["total_experts"], 9, "total_experts is 9, but the counts in the plan give 8"),
        (["trainable_parameters"], 1, "trainable_parameters is 1, but"),
    ],
)
def test_a_bad_document_is_refused_by_key_path(document, path, value, message):
    *parents, last = path
    row = document
    for key in parents:
        row = row[key]
    row[last] = value
    with pytest.raises(PlanError, match=message):
        Plan.from_dict(document)


@pytest.mark.parametrize("key", ["blocks", "budget", "rank", "total_experts"])
def test_a_missing_key_is_named(document, key):
    del document[key]
    with pytest.raises(PlanError, match=f"{key} is missing"):
        Plan.from_dict(document)
