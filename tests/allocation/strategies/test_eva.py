"""EVA: experts one by one, by what the components of a layer's inputs explain."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_alphalora.allocation import Evidence, components_needed
from axolotl_alphalora.allocation.strategies.eva import EvaOptions
from axolotl_alphalora.blocks import group_by_unit
from helpers.allocating import QUICK, budgets, experts, model, plan, sizes, spent_on, wanted

ONE = {"mlp.up_proj": (8, 8)}


def explained(shapes, *values):
    """What each module's first, second, ... expert explains, modules in order."""
    return Evidence(explained_variances=dict(zip(shapes, map(tuple, values), strict=True)))


def made(shapes, *values, options=None, **others):
    return plan("eva", shapes, options=options, evidence=explained(shapes, *values), **others)


def test_the_largest_are_kept_and_counted():
    values = [0.5, 0.3, 0.1, 0.05], [0.9, 0.02, 0.01, 0.0], [0.4, 0.35, 0.25, 0.0]
    found = made(model(3, ONE), *values, budget={"total_experts": 7, "min_experts": 0})
    # 0.9, 0.5, 0.4, 0.35, 0.3, 0.25, 0.1
    assert experts(found) == [3, 1, 3]
    found = made(model(3, ONE), *values, budget={"total_experts": 3, "min_experts": 0})
    assert experts(found) == [1, 1, 1]


def test_every_layer_has_the_minimum_first_and_none_more_than_the_maximum():
    values = [0.9, 0.8, 0.7, 0.6], [0.01, 0.0, 0.0, 0.0], [0.3, 0.2, 0.1, 0.0]
    bounds = {"min_experts": 1, "max_experts": 3}
    found = made(model(3, ONE), *values, budget={"total_experts": 6, **bounds})
    assert experts(found) == [3, 1, 2]
    full = made(model(3, ONE), *values, budget={"total_experts": 9, **bounds})
    assert experts(full) == [3, 3, 3]


def test_what_ties_is_shared_evenly_and_the_earlier_comes_first():
    values = [[0.25] * 4] * 3
    found = made(model(3, ONE), *values, budget={"total_experts": 7, "min_experts": 0})
    assert experts(found) == [3, 2, 2]
    beyond = made(model(3, ONE), *[[0.9]] * 3, budget={"total_experts": 8})
    assert experts(beyond) == [3, 3, 2], "also beyond what was measured"


def test_a_unit_counts_the_mean_of_its_modules():
    shapes = model(1)
    values = [0.4, 0.2], [0.2, 0.2], [0.45, 0.44]
    found = made(
        shapes,
        *values,
        options={"granularity": "group"},
        budget={"total_experts": 1, "min_experts": 0},
    )
    assert [unit.score for unit in found.units] == pytest.approx([0.5, 0.89])
    # A third of a block's expert each; what is left does not pay for one of the attention.
    assert experts(found) == [0, 3]


def test_a_dear_expert_is_passed_over_for_one_that_fits():
    shapes = model(1, {"mlp.up_proj": (64, 8), "mlp.gate_proj": (8, 8)})
    values = [0.9, 0.8], [0.3, 0.2]
    budget = {"total_parameters": 8 * 8 + 64 * 8 + 200, "min_experts": 0}
    found = made(shapes, *values, budget=budget)
    assert list(found.counts.values()) == [1, 1]
    assert found.budget["unspent"] == 200 - (8 + 8) * 8


@QUICK
@given(st.data())
@pytest.mark.parametrize("granularity", ["block", "group", "module"])
def test_any_values_and_budget_keep_bounds_and_spend_what_there_is(granularity, data):
    shapes = data.draw(sizes())
    budget = data.draw(budgets(shapes))
    value = st.integers(0, 64).map(lambda number: number / 640)
    table = st.lists(value, min_size=6, max_size=6).map(lambda row: sorted(row, reverse=True))
    values = [data.draw(table) for _ in shapes]
    found = made(
        shapes,
        *values,
        options={"granularity": granularity},
        budget=budget,
        optimizer="adamw_torch",
    )
    numbers = found.numbers
    least, most = budget["min_experts"], budget["max_experts"]
    assert min(numbers.values()) >= least
    assert most is None or max(numbers.values()) <= most
    kind = next(iter(budget))
    units = group_by_unit(shapes, granularity)
    assert spent_on(kind, shapes, numbers) <= budget[kind]
    for names in units.values():
        assert len({numbers[name] for name in names}) == 1
        if most is None or numbers[names[0]] < most:
            more = numbers | {name: numbers[name] + 1 for name in names}
            assert spent_on(kind, shapes, more) > budget[kind]


@QUICK
@given(st.data())
def test_where_all_cost_the_same_it_is_a_sort(data):
    """EVA's own words: pool, sort, keep the largest, count."""
    shapes = model(data.draw(st.integers(1, 5)), ONE)
    # Distinct numbers, so that nothing ties.
    pool = data.draw(st.permutations(range(1, 4 * len(shapes) + 1)))
    rows = [sorted(pool[i :: len(shapes)], reverse=True) for i in range(len(shapes))]
    total = data.draw(st.integers(1, len(pool)))
    kept = sorted(pool, reverse=True)[:total]
    budget = {"total_experts": total, "min_experts": 0}
    found = made(shapes, *[[number / 1000 for number in row] for row in rows], budget=budget)
    assert list(found.counts.values()) == [len(set(row) & set(kept)) for row in rows]


def test_what_was_measured_is_in_the_plan_and_its_file():
    values = [0.5, 0.25], [0.125, 0.0]
    found = made(model(2, ONE), *values, budget={"total_experts": 3})
    assert [module.explained for module in found.modules] == [(0.5, 0.25), (0.125, 0.0)]
    assert [unit.score for unit in found.units] == [0.75, 0.125]
    rows = found.to_dict()["modules"]
    assert [row["explained"] for row in rows] == [[0.5, 0.25], [0.125, 0.0]]
    assert type(found).from_dict(found.to_dict()) == found
    others = plan("uniform", model(2, ONE), budget={"total_experts": 3}).to_dict()
    assert all("explained" not in row for row in others["modules"]), "as older releases know it"


@pytest.mark.parametrize(
    ("options", "budget", "experts"),
    [
        ({}, {"experts_per_block": 5}, 10),
        ({"rho": 1.0}, {"experts_per_block": 5}, 5),
        ({"rho": 1.5}, {"experts_per_block": 3}, 5),
        ({}, {"total_experts": 2, "min_experts": 0}, 1),
        ({}, {"experts_per_block": 5, "max_experts": 7}, 7),
    ],
)
def test_components_are_rho_times_an_even_plans_in_whole_experts(options, budget, experts):
    request = wanted("eva", options=options, budget=budget, rank=8)
    assert components_needed(request, model(4)) == 8 * experts


def test_bad_options_and_missing_evidence_are_named():
    with pytest.raises(ValueError, match="'rho' of strategy 'eva'"):
        plan("eva", options={"rho": 0.5}, budget={"total_experts": 8})
    with pytest.raises(ValueError, match="tau"):
        plan("eva", options={"tau": 0.9}, budget={"total_experts": 8})
    with pytest.raises(ValueError, match=r"layers.0.self_attn.q_proj has no explained variance"):
        plan("eva", budget={"total_experts": 8})
    with pytest.raises(ValueError, match="total_experts is 3, but the least"):
        made(model(4, ONE), *[[0.1]] * 4, budget={"total_experts": 3})


def test_defaults_are_pefts_and_those_of_sensitivity():
    from peft import EvaConfig

    assert EvaOptions().rho == EvaConfig().rho
    assert (EvaOptions().samples, EvaOptions().granularity) == (64, "module")
