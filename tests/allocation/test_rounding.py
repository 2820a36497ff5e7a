"""Largest remainder: exact sums, bounds, monotony."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_alphalora.allocation import largest_remainder

POSITIVE = st.floats(min_value=1e-3, max_value=1e3)
WEIGHTS = st.lists(
    st.one_of(POSITIVE, st.just(0.0), st.integers(1, 5).map(float)), min_size=1, max_size=40
).filter(any)


@st.composite
def problems(draw):
    weights = draw(WEIGHTS)
    minimum = draw(st.integers(0, 4))
    maximum = draw(st.one_of(st.none(), st.integers(minimum, minimum + 12)))
    highest = minimum + 20 if maximum is None else maximum
    total = draw(st.integers(len(weights) * minimum, len(weights) * highest))
    return weights, total, minimum, maximum


@given(problems())
def test_shares_keep_the_total_the_bounds_and_the_order_of_the_weights(problem):
    weights, total, minimum, maximum = problem
    counts = largest_remainder(weights, total, minimum, maximum)
    assert sum(counts) == total
    assert min(counts) >= minimum
    assert maximum is None or max(counts) <= maximum
    ranked = sorted(range(len(weights)), key=lambda i: (weights[i], -i))
    for lighter, heavier in zip(ranked, ranked[1:], strict=False):
        assert counts[lighter] <= counts[heavier]


@given(problems(), st.sampled_from([0.125, 2.0, 1024.0]))
def test_only_the_ratios_of_the_weights_matter(problem, factor):
    weights, total, minimum, maximum = problem
    scaled = [weight * factor for weight in weights]
    assert largest_remainder(scaled, total, minimum, maximum) == largest_remainder(
        weights, total, minimum, maximum
    )


@given(problems())
def test_shares_lie_within_one_of_the_clamped_proportional_share(problem):
    weights, total, minimum, maximum = problem
    weights = [weight + 1e-3 for weight in weights]
    highest = total if maximum is None else maximum

    def clamped(scale):
        return [min(max(scale * weight, minimum), highest) for weight in weights]

    low, high = 0.0, (highest + 1) / min(weights)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(clamped(middle)) < total else (low, middle)
    counts = largest_remainder(weights, total, minimum, maximum)
    for count, share in zip(counts, clamped(high), strict=True):
        assert abs(count - share) < 1 + 1e-6


def test_ties_go_to_the_earlier_block():
    assert largest_remainder([1.0, 1.0, 1.0], 5) == [2, 2, 1]


def test_a_bound_on_one_side_leaves_the_rest_to_the_others():
    assert largest_remainder([100.0, 1.0, 1.0, 2.0], 14, 1, 8) == [8, 2, 1, 3]
    assert largest_remainder([100.0, 1.0, 1.0, 1.0], 10, 1, None) == [7, 1, 1, 1]


def test_a_bound_broken_only_at_first_does_not_stick():
    """A share below the floor at first fits once the ceiling has freed what it needs."""
    assert largest_remainder([10.0, 1.0, 0.5], 12, 1, 6) == [6, 4, 2]


def test_weights_of_zero_share_what_the_ceiling_leaves():
    assert largest_remainder([1.0, 0.0, 0.0], 10, 1, 4) == [4, 3, 3]


def test_a_minimum_of_zero_may_leave_blocks_without_experts():
    assert largest_remainder([1.0, 0.0, 3.0], 4, 0) == [1, 0, 3]


@pytest.mark.parametrize("total", [20, 31, 257, 0])
def test_an_impossible_total_says_which_totals_are_possible(total):
    with pytest.raises(
        ValueError,
        match="total must lie between 32 and 256 for 32 blocks with minimum 1 and maximum 8, "
        f"not {total}",
    ):
        largest_remainder([1.0] * 32, total, 1, 8)


def test_an_impossible_total_without_a_ceiling_says_the_least():
    with pytest.raises(ValueError, match="at least 32 for 32 blocks with minimum 1, not 31"):
        largest_remainder([1.0] * 32, 31)


@pytest.mark.parametrize("total", [32, 256])
def test_the_limits_themselves_are_possible(total):
    assert largest_remainder([float(i + 1) for i in range(32)], total, 1, 8) == [total // 32] * 32


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_unusable_weights_are_named(bad):
    with pytest.raises(ValueError, match="weight 1 is"):
        largest_remainder([1.0, bad], 4)


def test_no_weight_at_all_is_refused():
    with pytest.raises(ValueError, match="all weights are zero"):
        largest_remainder([0.0, 0.0], 4)
    with pytest.raises(ValueError, match="no blocks"):
        largest_remainder([], 0)


def test_contradictory_bounds_are_refused():
    with pytest.raises(ValueError, match="maximum 1 is smaller than minimum 2"):
        largest_remainder([1.0], 2, 2, 1)
    with pytest.raises(ValueError, match="minimum is -1"):
        largest_remainder([1.0], 2, -1)
