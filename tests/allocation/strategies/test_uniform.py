"""The same number everywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.allocating import QUICK, assert_well_spent, budgets, experts, model, plan, sizes


def test_the_default_budget_is_five_a_block():
    made = plan("uniform", model(32))
    assert experts(made) == [5] * 32
    assert [unit.score for unit in made.units] == [None] * 32


def test_what_cannot_be_shared_evenly_goes_to_the_first_blocks():
    assert experts(plan("uniform", model(4), budget={"total_experts": 10})) == [3, 3, 2, 2]


@pytest.mark.parametrize("spend", ["experts", "rank"])
def test_a_budget_may_buy_rank_instead(spend):
    made = plan("uniform", model(4), budget={"total_experts": 10}, rank=4, spend=spend)
    assert experts(made) == [3, 3, 2, 2]
    assert made.total_experts == 10
    rows = {(module.experts, module.rank) for module in made.modules}
    assert rows == ({(3, 4), (2, 4)} if spend == "experts" else {(1, 12), (1, 8)})


@QUICK
@given(st.data())
def test_any_budget_is_spent_evenly(data):
    shapes = data.draw(sizes())
    budget = data.draw(budgets(shapes))
    made = plan("uniform", shapes, budget=budget, optimizer="adamw_torch")
    assert_well_spent(made, shapes, "block", budget)
    assert max(experts(made)) - min(experts(made)) <= 1
