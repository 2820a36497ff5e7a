"""Which configurations share an allocation, and which must not."""

import pytest

from axolotl_alphalora.planning import plan_request, read_block
from axolotl_alphalora.plugin.loading import _key
from helpers.allocating import plan
from helpers.settings import validate

pytestmark = pytest.mark.usefixtures("plugin")


def key(**changes):
    cfg = validate(**changes, output_dir="./out")
    return _key(cfg, plan_request(cfg, read_block(cfg)).needs)


def data(path: str) -> list[dict]:
    return [{"path": path, "ds_type": "json", "type": "alpaca"}]


@pytest.mark.parametrize(
    ("allocation", "same"), [("sensitivity", False), ("eva", False), ("uniform", True)]
)
def test_other_data_is_another_allocation_where_data_decides(allocation, same):
    block = {"allocation": allocation}
    first = key(alphalora=block, datasets=data("a.jsonl"))
    again = key(alphalora=block, datasets=data("a.jsonl"))
    other = key(alphalora=block, datasets=data("b.jsonl"))
    assert first == again
    assert (first == other) is same


def test_an_edited_plan_file_is_another_allocation(tmp_path):
    shapes = {"model.layers.0.mlp.up_proj": (8, 8)}
    keys = []
    for number in (1, 2):
        plan("counts", shapes, options={"experts": [number]}).save(tmp_path / "plan.json")
        keys.append(key(alphalora={"plan": "plan.json"}))
    assert keys[0] != keys[1]
