"""Cut experts, low-rank routers and a shared A that start from a plain LoRA."""

import pytest

from helpers.kinds import assert_same, layers, outputs
from helpers.starting import refused, saved_lora, started


@pytest.mark.parametrize(
    "mine",
    [
        {"segments": 2, "r": 8},
        {"segments": 2, "r": 8, "top_k": 1},
        {"segments": 4, "init_split": "svd", "top_k": 3},
        {"router_rank": 3},
        {"router_rank": 3, "init_split": "svd", "top_k": 3},
        {"router_rank": 3, "segments": 2, "r": 4, "init_split": "svd", "top_k": 3},
        {"share_a": True},
        {"share_a": True, "r": 7, "router_rank": 3, "use_rslora": True},
        {"top_k": 0.8},
        {"top_k": 0.9, "init_split": "svd"},
    ],
    ids=str,
)
def test_the_function_is_that_of_the_lora(tmp_path, mine):
    before = saved_lora(tmp_path)
    model = started(tmp_path, **mine)
    m = mine.get("segments", 1)
    assert {layer.num_experts["default"] for layer in layers(model).values()} == {m, 2 * m, 3 * m}
    assert_same(outputs(model), before, atol=2e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"segments": 2},
            r"rank 8 in .*, which have rank 4 here, cut into 2.*\(lora_r\) to 8",
        ),
        ({"top_k": 0.3}, "4 experts here, and with top_k: 0.3 a token uses one.*top_k to 2"),
        (
            {"init_split": "svd", "top_k": 0.5, "segments": 2},
            "over the 4 experts of .*, of which a token uses 2:.*top_k to 4 or more",
        ),
        ({"share_a": True, "segments": 2, "r": 8}, "one A.*init_split: copy and segments: 1"),
        ({"share_a": True, "init_split": "svd", "top_k": 4}, "one A.*or share_a: false"),
    ],
    ids=str,
)
def test_what_would_lose_the_function_is_refused(tmp_path, changes, message):
    saved_lora(tmp_path)
    refused(tmp_path, message, **{"r": 4} | changes)
