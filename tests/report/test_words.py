"""What a mixture looks like in a layer, in words."""

import pytest

from axolotl_alphalora.mixture import Mixture
from axolotl_alphalora.report.words import shape_line, top_k_words


@pytest.mark.parametrize(
    ("shape", "counts", "said"),
    [
        ({"segments": 4}, [5, 5], "5 experts, each cut into 4 of rank 2; 8 of 20 active."),
        (
            {"segments": 4},
            [1, 0, 9],
            "1-9 experts a layer, each cut into 4 of rank 2; 4-8 of 4-36 active.",
        ),
        ({"segments": 8}, [1], "1 expert, each cut into 8 of rank 1; 8 of 8 active."),
        ({"top_k": 0.25}, [1, 19], "1-19 experts a layer; 1-5 of 1-19 active."),
        (
            {"top_k": 0.5, "segments": 2, "router_rank": 16, "share_a": True},
            [6],
            "6 experts, each cut into 2 of rank 4; 6 of 12 active; routers of rank 16; one A "
            "shared by the experts of a layer.",
        ),
        ({"router_rank": 16}, [5], "Routers of rank 16."),
        ({"share_a": True}, [5], "One A shared by the experts of a layer."),
    ],
    ids=str,
)
def test_a_shape_is_one_sentence(shape, counts, said):
    assert shape_line(Mixture(**shape), counts, [8]) == [said]


@pytest.mark.parametrize("top_k", [1, 2, 9])
def test_whole_experts_and_full_routers_are_no_cause_for_a_word(top_k):
    assert shape_line(Mixture(top_k=top_k), [1, 5], [8]) == []


def test_top_k_is_a_number_or_a_share():
    assert [top_k_words(each) for each in (2, 0.25, 0.125)] == ["top-2", "top-25%", "top-12.5%"]
