"""Shapes of a mixture in one layer."""

import pytest

from axolotl_alphalora.mixture import Mixture


@pytest.mark.parametrize(
    ("top_k", "segments", "planned", "active"),
    [
        (2, 1, 5, 2),
        (2, 1, 1, 1),
        (9, 1, 5, 5),
        (2, 4, 5, 8),
        (2, 4, 1, 4),
        (0.25, 1, 19, 5),
        (0.25, 1, 6, 2),
        (0.01, 1, 19, 1),
        (0.25, 2, 8, 4),
    ],
)
def test_active_experts_are_whole_shares_of_what_the_plan_gives(top_k, segments, planned, active):
    assert Mixture(top_k=top_k, segments=segments).active(planned) == active


def test_segments_keep_total_and_active_rank():
    whole, cut = Mixture(), Mixture(segments=4)
    assert cut.experts(5) == 4 * whole.experts(5)
    assert cut.active(5) * (8 // 4) == whole.active(5) * 8


def test_shapes_of_every_combination():
    plain = {"alphalora_A": (40, 64), "alphalora_B": (96, 40)}
    assert Mixture().tensors(64, 96, 5, 8) == plain | {"alphalora_router": (5, 64)}
    assert Mixture(segments=4).tensors(64, 96, 5, 8) == plain | {"alphalora_router": (20, 64)}
    assert Mixture(share_a=True, router_rank=3, segments=2).tensors(64, 96, 5, 8) == {
        "alphalora_A": (8, 64),
        "alphalora_B": (96, 40),
        "alphalora_router": (10, 3),
        "alphalora_router_down": (3, 64),
    }
    assert Mixture().tensors(64, 96, 1, 8) == {"alphalora_A": (8, 64), "alphalora_B": (96, 8)}
    assert Mixture().tensors(64, 96, 0, 8) == {}


def test_seven_billion_parameters_as_mola_counts_them():
    """LLaMA-2-7B, rank 8, all linear layers: 660,224 parameters an expert and block."""
    shapes = [(4096, 4096)] * 4 + [(4096, 11008)] * 2 + [(11008, 4096)]
    assert sum(Mixture().parameters(*shape, 5, 8) for shape in shapes) == 5 * 660_224


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"top_k": 0}, ValueError, "top_k"),
        ({"top_k": 1.0}, ValueError, r"in \(0, 1\)"),
        ({"top_k": True}, TypeError, "top_k"),
        ({"segments": 0}, ValueError, "segments"),
        ({"segments": 2.0}, TypeError, "segments"),
        ({"router_rank": 0}, ValueError, "router_rank"),
        ({"share_a": 1}, TypeError, "share_a"),
    ],
)
def test_wrong_values_are_named(wrong, error, said):
    with pytest.raises(error, match=said):
        Mixture(**wrong)


def test_a_rank_that_cannot_be_cut_is_refused():
    Mixture(segments=4).check_rank(8)
    with pytest.raises(ValueError, match="lora_r is 6.*multiple of 4"):
        Mixture(segments=4).check_rank(6, "lora_r")
