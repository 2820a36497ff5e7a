"""LoRA-SMoE: strict percentiles as in the paper, or shares of a budget."""

import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_alphalora.allocation import StrategyError
from axolotl_alphalora.allocation.strategies.sensitivity import above_percentile
from axolotl_alphalora.blocks import group_by_unit
from helpers.allocating import (
    QUICK,
    assert_well_spent,
    budgets,
    experts,
    model,
    plan,
    sizes,
    with_sensitivities,
)

ATTENTION = {f"self_attn.{name}_proj": (8, 8) for name in "qkv"}


def sensed(shapes, *tasks, options=None, **others):
    evidence = with_sensitivities(shapes, *tasks)
    return plan("sensitivity", shapes, options=options, evidence=evidence, **others)


def test_the_papers_numbers_at_the_40th_percentile():
    """144 attention matrices, 8 tasks: 86 of each task are above, 113 of them of any task."""
    shapes = model(48, ATTENTION)
    tasks = []
    for task in range(8):
        values = [math.sin(i) ** 2 for i in range(144)]
        for place in range(86):
            values[(14 * task + place) % 113] = 10 + place
        tasks.append(values)
    made = sensed(shapes, *tasks, options={"percentile": 40})
    assert made.module_experts == 688 == 8 * 86
    assert sum(count > 0 for count in made.counts.values()) == 113
    assert max(made.counts.values()) <= 8
    assert made.budget["kind"] is None


def test_a_count_is_the_number_of_tasks_that_are_above():
    shapes = model(2, {"self_attn.q_proj": (8, 8), "mlp.up_proj": (8, 8)})
    made = sensed(shapes, [1, 2, 3, 4], [4, 1, 2, 9], options={"percentile": 50})
    assert list(made.counts.values()) == [1, 0, 1, 2]


def test_a_value_on_the_threshold_is_not_above_it():
    shapes = model(5, {"mlp.up_proj": (8, 8)})
    made = sensed(shapes, [1, 2, 3, 4, 5], options={"percentile": 50})
    assert experts(made) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("within", "counts"),
    [("all", [0, 0, 1, 0, 0, 1]), ("group", [1, 0, 0, 1, 0, 1]), ("kind", [1, 0, 0, 0, 1, 1])],
)
def test_a_percentile_is_taken_over_all_or_a_group_or_a_kind(within, counts):
    shapes = model(2, {"self_attn.q_proj": (8, 8), "self_attn.k_proj": (8, 8), "mlp.up": (8, 8)})
    made = sensed(shapes, [7, 1, 8, 6, 2, 9], options={"percentile": 60, "within": within})
    assert list(made.counts.values()) == counts


@QUICK
@given(
    st.lists(st.floats(0, 1e9), min_size=1, max_size=30),
    st.floats(0, 100, exclude_max=True),
)
def test_percentiles_are_numpys(values, percentile):
    threshold = numpy.percentile(values, percentile)
    for value, above in zip(values, above_percentile(values, percentile), strict=True):
        if not math.isclose(value, threshold, rel_tol=1e-12, abs_tol=1e-12):
            assert above == (value > threshold)


@QUICK
@given(st.data())
@pytest.mark.parametrize("granularity", ["block", "group", "module"])
def test_any_sensitivities_and_budget_are_shared_out_within_bounds_and_in_order(granularity, data):
    shapes = data.draw(sizes())
    value = st.integers(1, 10_000).map(lambda number: number / 16)
    table = st.lists(value, min_size=len(shapes), max_size=len(shapes))
    budget = data.draw(budgets(shapes))
    made = sensed(
        shapes,
        *data.draw(st.lists(table, min_size=1, max_size=3)),
        options={"granularity": granularity},
        budget=budget,
        optimizer="adamw_torch",
    )
    assert_well_spent(made, shapes, granularity, budget)


def test_every_task_counts_the_same_however_large_its_gradients():
    shapes = model(2, {"mlp.up_proj": (8, 8)})
    small = sensed(shapes, [1, 3], [3, 1], budget={"total_experts": 8})
    large = sensed(shapes, [1000, 3000], [3, 1], budget={"total_experts": 8})
    assert [unit.score for unit in small.units] == [unit.score for unit in large.units] == [0.5] * 2
    assert experts(small) == experts(large) == [4, 4]


def test_experts_are_in_proportion_to_a_power_of_the_share():
    shapes = model(2, {"mlp.up_proj": (8, 8)})
    for beta, counts in ((0.5, [3, 9]), (0.0, [6, 6]), (1.0, [1, 11])):
        made = sensed(shapes, [1, 9], options={"beta": beta}, budget={"total_experts": 12})
        assert experts(made) == counts


def test_a_unit_counts_the_sum_of_its_modules():
    shapes = model(2)
    table = [1, 2, 3, 4, 5, 6]
    made = sensed(shapes, table, options={"granularity": "group"})
    assert list(group_by_unit(shapes, "group")) == [unit.name for unit in made.units]
    assert [unit.score for unit in made.units] == pytest.approx([3 / 21, 3 / 21, 9 / 21, 6 / 21])


def test_what_was_measured_is_in_the_plan():
    shapes = model(1)
    made = sensed(shapes, [1, 2, 3], [4, 5, 6])
    assert [module.sensitivity for module in made.modules] == [
        {"task 0": 1.0, "task 1": 4.0},
        {"task 0": 2.0, "task 1": 5.0},
        {"task 0": 3.0, "task 1": 6.0},
    ]


def test_a_task_without_gradients_is_named():
    with pytest.raises(StrategyError, match="all gradients of the task 'task 1' are zero"):
        sensed(model(1), [1, 2, 3], [0, 0, 0])


def test_a_percentile_takes_no_budget():
    with pytest.raises(ValueError, match="'sensitivity' says itself .*: remove experts_per_block"):
        sensed(model(1), [1, 2, 3], options={"percentile": 40}, budget={"experts_per_block": 5})
