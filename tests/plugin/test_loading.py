"""Which configurations share an allocation, and which must not."""

import pytest

import settings
from axolotl_alphalora.allocation import build_plan
from axolotl_alphalora.plugin.loading import _key
from settings import validate


@pytest.fixture(autouse=True)
def plugin(monkeypatch, tmp_path):
    settings.register(monkeypatch)
    monkeypatch.chdir(tmp_path)


def data(path: str) -> list[dict]:
    return [{"path": path, "ds_type": "json", "type": "alpaca"}]


@pytest.mark.parametrize(("allocation", "same"), [("sensitivity", False), ("uniform", True)])
def test_other_data_is_another_allocation_where_data_decides(allocation, same):
    block = {"allocation": allocation}
    first = _key(validate(alphalora=block, datasets=data("a.jsonl"), output_dir="./out"))
    again = _key(validate(alphalora=block, datasets=data("a.jsonl"), output_dir="./out"))
    other = _key(validate(alphalora=block, datasets=data("b.jsonl"), output_dir="./out"))
    assert first == again
    assert (first == other) is same


def test_an_edited_plan_file_is_another_allocation(tmp_path):
    shapes = {"model.layers.0.mlp.up_proj": (8, 8)}
    keys = []
    for number in (1, 2):
        plan = build_plan(
            base_model="x",
            shapes=shapes,
            strategy="counts",
            options={"experts": [number]},
        )
        plan.save(tmp_path / "plan.json")
        keys.append(_key(validate(alphalora={"plan": "plan.json"}, output_dir="./out")))
    assert keys[0] != keys[1]
