"""What the limits of a budget accept."""

import dataclasses
import math

import pytest

from axolotl_alphalora.allocation.budget import Budget

KINDS = ["experts_per_block", "total_experts", "total_parameters", "memory_mib"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_limit_that_is_given_is_the_kind(kind):
    budget = Budget(**{kind: 7})
    assert (budget.kind, budget.amount) == (kind, 7)


def test_a_strategy_may_need_no_limit():
    budget = Budget(min_experts=0, max_experts=8)
    assert (budget.kind, budget.amount) == (None, None)


def test_means_and_mebibytes_may_be_fractions():
    assert Budget(experts_per_block=2.5).amount == 2.5
    assert Budget(memory_mib=0.25).amount == 0.25


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_two_limits_are_both_named(first, second):
    if first == second:
        return
    with pytest.raises(ValueError) as error:
        Budget(**{first: 4, second: 5})
    named = str(error.value).partition(" are both budgets")[0]
    assert sorted(named.split(" and ")) == sorted([first, second])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan, math.inf, True, "5"])
def test_an_unusable_limit_is_named(kind, value):
    with pytest.raises(ValueError, match=f"^{kind} must be .* above 0, not {value!r}$"):
        Budget(**{kind: value})


@pytest.mark.parametrize("kind", ["total_experts", "total_parameters"])
def test_a_total_is_whole(kind):
    with pytest.raises(ValueError, match=f"{kind} must be a whole number"):
        Budget(**{kind: 12.0})


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"min_experts": -1}, "min_experts must be a whole number of at least 0, not -1"),
        ({"min_experts": True}, "min_experts must be a whole number of at least 0, not True"),
        ({"min_experts": 1.0}, "min_experts must be a whole number of at least 0, not 1.0"),
        ({"min_experts": 0, "max_experts": 0}, "max_experts must be .* at least 1, not 0"),
        ({"max_experts": True}, "max_experts must be a whole number .* not True"),
        (
            {"min_experts": 4, "max_experts": 3},
            r"max_experts must be a whole number of at least 4 \(min_experts\), not 3",
        ),
    ],
)
def test_unusable_bounds_are_named(bounds, message):
    with pytest.raises(ValueError, match=message):
        Budget(total_experts=10, **bounds)


def test_a_budget_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Budget(total_experts=10).total_experts = 11
