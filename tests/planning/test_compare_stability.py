"""How far plans agree, by hand-made cases."""

from statistics import correlation

import pytest

from axolotl_alphalora.planning.compare import moved_experts, rank_correlation, stability


def numbers(*counts):
    """Two modules a block."""
    return {f"layers.{i // 2}.{'ab'[i % 2]}": count for i, count in enumerate(counts)}


def test_experts_that_move_count_as_shares_of_their_block():
    plan, other = numbers(5, 1, 2, 2), numbers(2, 2, 3, 3)
    assert moved_experts(plan, other) == 1.5
    assert moved_experts(other, plan) == 1.5
    assert moved_experts(plan, plan) == 0


def test_the_rank_correlation_is_spearmans_with_ties():
    plan, other = numbers(5, 1, 2, 2, 7, 1), numbers(1, 1, 3, 4, 2, 1)
    wanted = correlation([5, 1.5, 3.5, 3.5, 6, 1.5], [2, 2, 5, 6, 4, 2])
    assert rank_correlation(plan, other) == pytest.approx(wanted)
    shuffled = dict(reversed(other.items()))
    assert rank_correlation(plan, shuffled) == pytest.approx(wanted)
    assert rank_correlation(plan, numbers(*[3] * 6)) is None


def test_stability_is_the_mean_over_the_other_plans():
    plan = numbers(1, 2, 3, 4)
    found = stability("resamples", plan, [plan, numbers(4, 3, 2, 1)])
    assert (found.over, found.plans) == ("resamples", 2)
    assert found.rank_correlation == pytest.approx(0)
    assert found.moved == pytest.approx((0 + 2 / 5) / 2)


def test_a_constant_plan_has_no_ranks_and_supports_none():
    plan, even = numbers(1, 2, 3, 4), numbers(2, 2, 2, 2)
    assert stability("halves", even, [plan]).rank_correlation is None
    assert stability("halves", even, [plan]).moved > 0
    assert stability("halves", plan, [plan, even]).rank_correlation == pytest.approx(0.5)
    assert stability("halves", plan, []) is None
