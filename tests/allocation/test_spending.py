"""Spending in proportion: within bounds and limit, in the order of the weights, exact sums."""

import itertools
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_alphalora.allocation.spending import largest_remainder, spend

WEIGHTS = st.lists(
    st.one_of(st.integers(0, 4).map(float), st.floats(min_value=1e-3, max_value=1e3)),
    min_size=1,
    max_size=9,
).filter(any)


def linear(price):
    return lambda number: price * number


def with_router(price, router):
    """The first expert needs no router, each of several has a row of one."""
    return lambda number: price * number + (router * number if number > 1 else 0)


PRICES = st.one_of(
    st.integers(1, 30).map(linear),
    st.tuples(st.integers(1, 30), st.integers(1, 9)).map(lambda pair: with_router(*pair)),
)


@st.composite
def problems(draw):
    weights = draw(WEIGHTS)
    costs = draw(st.lists(PRICES, min_size=len(weights), max_size=len(weights)))
    minimum = draw(st.integers(0, 3))
    maximum = draw(st.one_of(st.none(), st.integers(max(minimum, 1), minimum + 8)))
    limit = total(costs, [minimum] * len(costs)) + draw(st.integers(0, 400))
    return weights, costs, limit, minimum, maximum


def total(costs, counts):
    return sum(cost(count) for cost, count in zip(costs, counts, strict=True))


def allowed(weights, counts, minimum, maximum):
    """The bounds, the order, and weights of zero at the minimum unless all others are full."""
    highest = math.inf if maximum is None else maximum
    return (
        all(minimum <= count <= highest for count in counts)
        and all(
            a <= b + (v == w)
            for (v, a), (w, b) in itertools.permutations(zip(weights, counts, strict=True), 2)
            if v <= w
        )
        and (
            all(c == highest for w, c in zip(weights, counts, strict=True) if w)
            or all(c == minimum for w, c in zip(weights, counts, strict=True) if not w)
        )
    )


def changed(counts, *changes):
    result = list(counts)
    for position, change in changes:
        result[position] += change
    return result


@given(problems())
def test_bounds_limit_and_order_hold_and_nothing_more_can_be_had(problem):
    weights, costs, limit, minimum, maximum = problem
    counts = spend(*problem)
    assert allowed(weights, counts, minimum, maximum)
    spent = total(costs, counts)
    assert spent <= limit
    positions = range(len(counts))
    better = [
        more
        for more in [
            *(changed(counts, (i, 1)) for i in positions),
            *(changed(counts, (i, 1), (j, -1)) for i in positions for j in positions if i != j),
        ]
        if allowed(weights, more, minimum, maximum)
        and total(costs, more) <= limit
        and (sum(more) > sum(counts) or total(costs, more) > spent)
    ]
    assert not better


@given(problems(), st.integers(0, 60), st.integers(1, 50), st.data())
def test_equal_prices_give_the_largest_remainder(problem, more, price, data):
    weights, _, _, minimum, maximum = problem
    experts = len(weights) * minimum + more
    if maximum is not None:
        experts = min(experts, len(weights) * maximum)
    limit = experts * price + data.draw(st.integers(0, price - 1))
    counts = spend(weights, [linear(price)] * len(weights), limit, minimum, maximum)
    assert counts == largest_remainder(weights, experts, minimum, maximum)


@given(problems())
def test_the_scale_of_costs_does_not_matter(problem):
    weights, costs, limit, minimum, maximum = problem
    dearer = [lambda number, cost=cost: 1000 * cost(number) for cost in costs]
    assert spend(weights, dearer, 1000 * limit + 999, minimum, maximum) == spend(*problem)


@given(
    st.lists(st.floats(min_value=1.0, max_value=9.0), min_size=6, max_size=20, unique=True),
    st.integers(0, 300),
)
def test_attention_and_mlp_of_distinct_blocks_meet_every_budget(weights, spare):
    """4 and 3 modules of a block of 7: an exchange gains one seventh of an expert."""
    doubled = [weight for weight in weights for _ in range(2)]
    costs = [linear(4), linear(3)] * len(weights)
    limit = 7 * 6 * len(weights) + spare
    left = limit - total(costs, spend(doubled, costs, limit, 0))
    assert left <= 3
    assert left == 0 or exchanges_are_blocked(doubled, costs, limit)


def exchanges_are_blocked(weights, costs, limit):
    counts = spend(weights, costs, limit, 0)
    return not any(
        allowed(weights, changed(counts, (i, 1), (j, -1)), 0, None)
        for i in range(0, len(counts), 2)
        for j in range(1, len(counts), 2)
    )


def test_an_exchange_meets_the_limit_that_single_experts_cannot():
    costs = [linear(4), linear(3), linear(4), linear(3)]
    counts = spend([4.0, 3.0, 2.0, 1.0], costs, 36, 0)
    assert total(costs, counts) == 36
    assert counts == sorted(counts, reverse=True)


def test_what_is_left_goes_to_the_best_claim():
    """Shares 9, 3, 1 cost 94; Webster's quotients for one more are 9/19, 3/7 and 1/3."""
    costs = [linear(10), linear(1), linear(1)]
    assert spend([9.0, 3.0, 1.0], costs, 94) == [9, 3, 1]
    assert spend([9.0, 3.0, 1.0], costs, 95) == [9, 4, 1]
    assert spend([9.0, 3.0, 1.0], costs, 96) == [9, 5, 1], "the earlier of two equal claims"
    assert spend([9.0, 3.0, 1.0], costs, 97) == [9, 5, 2]


def test_an_exchange_takes_from_the_least_claim():
    """48 pays for 8, 4, 1 and 1 more; 4 experts at weight 5 are more than 1 at weight 1."""
    assert spend([10.0, 5.0, 1.0], [linear(4), linear(3), linear(3)], 48, 0) == [9, 3, 1]


def test_an_exchange_never_takes_from_above_an_equal_count():
    """Taking from the unit in the middle would meet 56, but leave it below the lightest."""
    assert spend([4.0, 1.01, 1.0], [linear(5), linear(3), linear(4)], 56) == [9, 2, 1]


def test_equal_prices_follow_largest_remainder_where_more_experts_give_a_unit_fewer():
    assert spend([6.0, 6.0, 2.0], [linear(1)] * 3, 10, 0) == [4, 4, 2]
    assert spend([6.0, 6.0, 2.0], [linear(1)] * 3, 11, 0) == [5, 5, 1]


def test_weights_of_zero_share_what_the_maximum_leaves():
    costs = [linear(2)] * 3
    assert spend([1.0, 0.0, 0.0], costs, 10, 1, 4) == [3, 1, 1]
    assert spend([1.0, 0.0, 0.0], costs, 18, 1, 4) == [4, 3, 2]


def test_a_maximum_that_is_affordable_is_given_everywhere():
    assert spend([5.0, 1.0, 0.0], [linear(9), linear(2), linear(1)], 10_000, 1, 6) == [6, 6, 6]


def test_a_router_from_the_second_expert_on_is_paid_for():
    assert spend([1.0, 1.0], [with_router(10, 2)] * 2, 34) == [2, 1]
    assert spend([1.0, 1.0], [with_router(10, 2)] * 2, 33) == [1, 1]


def test_the_minimum_must_be_affordable():
    with pytest.raises(ValueError, match="2 for each of 3 units costs 24, .* the limit of 23"):
        spend([1.0, 2.0, 3.0], [linear(4)] * 3, 23, 2)


def test_costs_that_never_rise_need_a_maximum():
    with pytest.raises(ValueError, match="costs must rise"):
        spend([1.0, 2.0], [linear(0)] * 2, 5)
    assert spend([1.0, 2.0], [linear(0)] * 2, 5, 1, 3) == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], 5), "no blocks"),
        (([1.0], [], 5), "1 weights but 0 costs"),
        (([0.0], [linear(1)], 5), "all weights are zero"),
        (([math.nan], [linear(1)], 5), "weight 0 is nan"),
        (([1.0], [linear(1)], 5, -1), "minimum is -1"),
        (([1.0], [linear(1)], 5, 3, 2), "maximum 2 is smaller than minimum 3"),
    ],
)
def test_unusable_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        spend(*arguments)


@pytest.mark.parametrize("equal", [True, False])
def test_a_thousand_modules_take_little_time(equal):
    weights = [1.0 if equal else 1 + (7919 * i % 1000) / 100 for i in range(1000)]
    prices = [(65_536, 36_864, 90_112, 151_553)[i % 4] for i in range(1000)]
    started = time.process_time()
    counts = spend(weights, [linear(price) for price in prices], 10**9)
    assert time.process_time() - started < 2
    assert max(counts) > 10


POSITIVE = st.floats(min_value=1e-3, max_value=1e3)
SHARED = st.lists(
    st.one_of(POSITIVE, st.just(0.0), st.integers(1, 5).map(float)), min_size=1, max_size=40
).filter(any)


@st.composite
def totals(draw):
    weights = draw(SHARED)
    minimum = draw(st.integers(0, 4))
    maximum = draw(st.one_of(st.none(), st.integers(minimum, minimum + 12)))
    highest = minimum + 20 if maximum is None else maximum
    total = draw(st.integers(len(weights) * minimum, len(weights) * highest))
    return weights, total, minimum, maximum


@given(totals())
def test_shares_keep_the_total_the_bounds_and_the_order_of_the_weights(problem):
    weights, total, minimum, maximum = problem
    counts = largest_remainder(weights, total, minimum, maximum)
    assert sum(counts) == total
    assert min(counts) >= minimum
    assert maximum is None or max(counts) <= maximum
    ranked = sorted(range(len(weights)), key=lambda i: (weights[i], -i))
    for lighter, heavier in zip(ranked, ranked[1:], strict=False):
        assert counts[lighter] <= counts[heavier]


@given(totals(), st.sampled_from([0.125, 2.0, 1024.0]))
def test_only_the_ratios_of_the_weights_matter(problem, factor):
    weights, total, minimum, maximum = problem
    scaled = [weight * factor for weight in weights]
    assert largest_remainder(scaled, total, minimum, maximum) == largest_remainder(
        weights, total, minimum, maximum
    )


@given(totals())
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
