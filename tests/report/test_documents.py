"""Inspections as JSON values."""

import json

import pytest

from axolotl_alphalora.inspection import (
    specialisation,
)
from axolotl_alphalora.report.documents import inspection_document
from helpers import inspecting
from helpers.inspecting import PLAN


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return inspecting.bare(tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def watched(bare):
    return inspecting.watched(bare)


def test_json_holds_everything(bare, watched):
    found = json.loads(json.dumps(inspection_document(watched), allow_nan=False))
    assert (found["format"], found["version"]) == ("axolotl-alphalora-inspection", 1)
    assert found["adapter"] == {
        "base_model": "some/base",
        "rank": 4,
        "top_k": 2,
        "segments": 1,
        "router_rank": None,
        "share_a": False,
        "lora_alpha": 16,
        "use_rslora": False,
        "strategy": PLAN["strategy"],
        "blocks": 3,
        "modules": 12,
        "total_experts": 8,
        "module_experts": 32,
        "parameters": bare.parameters,
    }
    assert found["data"] == {
        "source": "data.jsonl",
        "tokens": 200,
        "rows": {"code": 3, "maths": 5},
    }
    row, module = watched.modules[4], found["modules"][4]
    assert module["name"] == row.name and module["shape"] == [24, 32]
    assert module["cosine"] == [list(line) for line in row.cosine]
    assert [expert["norm"] for expert in module["experts"]] == [e.norm for e in row.experts]
    assert list(module["usage"]) == ["all", "code", "maths"]
    assert module["usage"]["all"]["dead"] == [2]
    assert module["specialisation"] == pytest.approx(
        specialisation(list(watched.task_usages(row.name).values()))
    )
    assert [block["experts"] for block in found["blocks"]] == [1, 3, 4]
    assert found["blocks"][2]["routing"]["dead"] == 4
    assert [task["name"] for task in found["tasks"]] == ["code", "maths"]
    without = inspection_document(bare)
    assert without["data"] is without["routing"] is None and without["tasks"] == []
    assert all(module["usage"] is None for module in without["modules"])
