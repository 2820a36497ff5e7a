"""AlphaLoRA's allocation: the published scores' counts, at every granularity, within any budget."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_alphalora.allocation import StrategyError
from axolotl_alphalora.allocation.strategies.alphalora import published_rounding
from axolotl_alphalora.blocks import group_by_unit
from helpers.allocating import (
    LLAMA_2_7B,
    QUICK,
    assert_well_spent,
    budgets,
    experts,
    model,
    plan,
    sizes,
    with_alphas,
)

SCORES = [
    *(2.14, 2.74, 3.03, 3.12, 3.2, 3.15, 3.01, 3.04, 2.79, 2.85, 2.75, 2.72, 2.96, 2.97, 3.03),
    *(3.15, 3.45, 3.72, 4.02, 3.77, 4.37, 4.55, 4.32, 4.18, 4.25, 4.2, 3.74, 4.25, 4.22, 4.13),
    *(4.42, 3.44),
]
"""LLaMA-2-7B's block scores in MoLA's appendix H."""
LARGEST_REMAINDER = [
    *(1, 3, 3, 4, 4, 4, 3, 3, 3, 3, 3, 2, 3, 3, 3, 4),
    *(5, 5, 7, 6, 8, 9, 8, 7, 8, 7, 6, 8, 8, 7, 8, 4),
]
PUBLISHED = [
    *(1, 3, 3, 4, 4, 4, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4),
    *(5, 6, 7, 6, 8, 6, 8, 7, 8, 7, 6, 8, 8, 7, 8, 5),
]
LLAMA = model(32, LLAMA_2_7B)


def llama(options=None, **budget):
    return plan(
        "alphalora", LLAMA, options=options, budget=budget, evidence=with_alphas(LLAMA, SCORES)
    )


def allocated(alphas, options=None, **budget):
    shapes = model(len(alphas))
    return plan(
        "alphalora", shapes, options=options, budget=budget, evidence=with_alphas(shapes, alphas)
    )


def test_llama_2_7b_with_the_defaults():
    made = llama()
    assert experts(made) == LARGEST_REMAINDER
    assert [unit.score for unit in made.units] == SCORES
    assert made.total_experts == 160


def test_llama_2_7b_as_the_released_code_rounds():
    made = llama({"rounding": "published"}, total_experts=160)
    assert experts(made) == PUBLISHED
    assert published_rounding(SCORES, 2.5, 160) == PUBLISHED


def test_published_rounding_gives_what_is_missing_to_the_smallest_gap():
    """Shares 1.45, 1.21 and 1.33 round to 1 each; the gaps s - n are 0.2, 0 and 0.1."""
    assert published_rounding([1.2, 1.0, 1.1], 1.0, 4) == [1, 2, 1]


@pytest.mark.parametrize(("total", "beta", "count"), [(32, 2.5, -4), (96, 1.0, -1)])
def test_published_rounding_is_refused_where_it_goes_below_zero(total, beta, count):
    assert min(published_rounding(SCORES, beta, total)) == count
    with pytest.raises(
        StrategyError,
        match=rf"strategy 'alphalora': rounding: published gives model\.layers\.\d+ {count} "
        rf"experts for a total of {total}: .* Use rounding: largest_remainder, or a larger",
    ):
        llama({"rounding": "published", "beta": beta}, total_experts=total)


@pytest.mark.parametrize(
    ("options", "budget", "message"),
    [
        ({"granularity": "module"}, {"total_experts": 160}, "for blocks, not granularity: module"),
        ({}, {"total_parameters": 10**8}, "for a budget in experts, not total_parameters"),
    ],
)
def test_published_rounding_is_for_blocks_and_experts_only(options, budget, message):
    shapes = LLAMA
    alphas = [2.0] * len(group_by_unit(shapes, options.get("granularity", "block")))
    evidence = with_alphas(shapes, alphas, options.get("granularity", "block"))
    with pytest.raises(ValueError, match=f"published is defined {message}"):
        plan(
            "alphalora",
            shapes,
            options={"rounding": "published", **options},
            budget=budget,
            evidence=evidence,
        )


def test_published_rounding_keeps_to_the_bounds_or_is_refused():
    """The released code knows no bounds, so what it gives is checked like a stranger's numbers."""
    with pytest.raises(StrategyError, match=r"layers\.0\.\S+ gets 1 experts, fewer than min_ex"):
        llama({"rounding": "published"}, total_experts=160, min_experts=2)


@QUICK
@given(st.data())
@pytest.mark.parametrize("granularity", ["block", "group", "module"])
def test_any_alphas_and_budget_are_shared_out_within_bounds_and_in_order(granularity, data):
    shapes = data.draw(sizes())
    units = len(group_by_unit(shapes, granularity))
    floats = st.floats(1.01, 20) | st.floats(2, 2.0000001)
    alphas = data.draw(st.lists(floats, min_size=units, max_size=units))
    budget = data.draw(budgets(shapes))
    made = plan(
        "alphalora",
        shapes,
        options={"granularity": granularity, "beta": data.draw(st.sampled_from([0.0, 0.5, 2.5]))},
        budget=budget,
        evidence=with_alphas(shapes, alphas, granularity),
        optimizer="adamw_torch",
    )
    assert_well_spent(made, shapes, granularity, budget)


def test_parts_of_a_block_may_differ():
    shapes = model(2)
    made = plan(
        "alphalora",
        shapes,
        options={"granularity": "group", "beta": 1.0},
        budget={"total_experts": 8},
        evidence=with_alphas(shapes, [2.0, 4.0, 2.0, 4.0], "group"),
    )
    assert [unit.name for unit in made.units][:2] == [
        "model.layers.0 attention",
        "model.layers.0 mlp",
    ]
    assert experts(made) == [3, 6, 3, 6]
    assert made.block_numbers == {"model.layers.0": 4, "model.layers.1": 4}


def test_beta_zero_shares_evenly():
    assert experts(llama({"beta": 0}, total_experts=160)) == [5] * 32


def test_what_cannot_be_shared_evenly_goes_to_the_larger_alphas():
    tied = allocated([2.0, 3.0, 2.5], {"beta": 0}, total_experts=5)
    assert experts(tied) == [1, 2, 2]
    close = allocated([2.0, 2.0 + 1e-15], {"beta": 0.001}, total_experts=3)
    assert experts(close) == [1, 2]


def test_extreme_exponents_do_not_overflow():
    assert experts(allocated([1e200, 1.0], {"beta": 100}, total_experts=10)) == [9, 1]


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_an_unusable_alpha_is_named(alpha):
    with pytest.raises(StrategyError, match=r"strategy 'alphalora': the \w+ of 'model\.layers\.1'"):
        allocated([2.0, alpha], total_experts=4)
