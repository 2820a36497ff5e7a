"""A straight line over depth."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_alphalora.allocation import registry
from helpers.allocating import QUICK, assert_well_spent, budgets, experts, model, plan


@pytest.mark.parametrize("given", ["2-8", [2, 8], (2.0, 8.0)])
def test_a_ramp_runs_from_the_first_block_to_the_last(given):
    made = plan("depth", model(4), options={"ramp": given})
    assert [unit.score for unit in made.units] == [2.0, 4.0, 6.0, 8.0]
    assert experts(made) == [2, 4, 6, 8]


def test_the_short_form_names_the_ends():
    assert registry().read("depth:8-2") == {"strategy": "depth", "ramp": "8-2"}
    assert experts(plan("depth", model(4), options={"ramp": "8-2"})) == [8, 6, 4, 2]


def test_rounding_keeps_the_sum_of_the_line():
    made = plan("depth", model(32), options={"ramp": "2-8"})
    assert made.total_experts == 160
    assert experts(made) == sorted(experts(made))
    assert all(abs(unit.experts - unit.score) < 1 for unit in made.units)


def test_one_block_gets_the_middle():
    assert experts(plan("depth", model(1), options={"ramp": "2-8"})) == [5]


def test_each_stack_has_a_line_of_its_own():
    shapes = {**model(2, stack="vision.layers"), **model(3, stack="text.layers")}
    made = plan("depth", shapes, options={"ramp": [2, 4]})
    numbers = {unit.name: unit.experts for unit in made.units}
    assert [numbers[f"vision.layers.{i}"] for i in range(2)] == [2, 4]
    assert [numbers[f"text.layers.{i}"] for i in range(3)] == [2, 3, 4]


@QUICK
@given(st.data())
def test_any_line_and_budget(data):
    shapes = model(data.draw(st.integers(1, 6)))
    budget = data.draw(budgets(shapes))
    ends = st.integers(1, 40).map(lambda number: number / 4)
    ramp = [data.draw(ends), data.draw(ends)]
    made = plan("depth", shapes, options={"ramp": ramp}, budget=budget, optimizer="adamw_torch")
    assert_well_spent(made, shapes, "block", budget)
