"""MoLA's shapes over depth: groups as equal as can be, scaled to a budget where there is one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_alphalora.allocation import StrategyError, registry
from helpers.allocating import LLAMA_2_7B, QUICK, assert_well_spent, budgets, experts, model, plan

SHAPES = {
    "8642": [8, 6, 4, 2],
    "2468": [2, 4, 6, 8],
    "8228": [8, 2, 2, 8],
    "2882": [2, 8, 8, 2],
    "5555": [5, 5, 5, 5],
    "8888": [8, 8, 8, 8],
    "6532": [6, 5, 3, 2],
    "2356": [2, 3, 5, 6],
    "6226": [6, 2, 2, 6],
    "2662": [2, 6, 6, 2],
    "4444": [4, 4, 4, 4],
    "10-2-2-2": [10, 2, 2, 2],
    "2-10-2-2": [2, 10, 2, 2],
    "2-2-10-2": [2, 2, 10, 2],
    "2-2-2-10": [2, 2, 2, 10],
}
"""The published ones."""


@pytest.mark.parametrize("name", SHAPES)
def test_published_shapes_on_32_blocks(name):
    request = registry().read(f"mola:{name}")
    made = plan(
        request.pop("strategy"),
        model(32, LLAMA_2_7B),
        options=request,
        budget={"min_experts": 1},
    )
    assert experts(made) == [number for number in SHAPES[name] for _ in range(8)]
    assert made.total_experts == 8 * sum(SHAPES[name])
    assert made.budget["kind"] is None


@pytest.mark.parametrize(
    ("name", "total", "parameters"),
    [
        *((name, 160, 105_635_840) for name in ("8642", "2468", "8228", "2882", "5555")),
        ("8888", 256, 169_017_344),
        *((name, 128, 84_508_672) for name in ("6532", "2356", "6226", "2662", "4444", "10-2-2-2")),
    ],
)
def test_parameters_on_llama_2_7b(name, total, parameters):
    made = plan("mola", model(32, LLAMA_2_7B), options={"shape": name}, rank=8)
    assert (made.total_experts, made.trainable_parameters) == (total, parameters)
    assert parameters == total * (624_640 + 35_584)


@pytest.mark.parametrize("given", [2468, "2468", "2-4-6-8", [2, 4, 6, 8], (2, 4, 6, 8)])
def test_a_shape_is_written_in_any_of_these_ways(given):
    assert registry().get("mola").options({"shape": given}).shape == [2, 4, 6, 8]


def test_a_short_form_that_starts_with_zero_is_no_octal_number():
    assert registry().read("mola:0246") == {"strategy": "mola", "shape": "0246"}
    made = plan("mola", model(4), options={"shape": "0246"}, budget={"min_experts": 0})
    assert experts(made) == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("blocks", "counts"),
    [
        (4, [2, 4, 6, 8]),
        (5, [2, 2, 4, 6, 8]),
        (6, [2, 2, 4, 4, 6, 8]),
        (7, [2, 2, 4, 4, 6, 6, 8]),
        (9, [2, 2, 2, 4, 4, 6, 6, 8, 8]),
    ],
)
def test_blocks_that_do_not_divide_make_the_first_groups_larger(blocks, counts):
    assert experts(plan("mola", model(blocks), options={"shape": 2468})) == counts


@QUICK
@given(st.integers(1, 60), st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_groups_are_consecutive_and_differ_by_one_block_at_most(blocks, shape):
    # Numbers that tell the groups apart.
    shape = [number + 100 * place for place, number in enumerate(shape)]
    if blocks < len(shape):
        with pytest.raises(StrategyError, match=rf"{len(shape)} numbers in shape .* {blocks} bl"):
            plan("mola", model(blocks), options={"shape": shape})
        return
    counts = experts(plan("mola", model(blocks), options={"shape": shape}))
    assert counts == sorted(counts)
    sizes = [counts.count(number) for number in shape]
    assert sum(sizes) == blocks
    assert sizes == sorted(sizes, reverse=True)
    assert sizes.count(max(sizes)) == blocks % len(shape) or max(sizes) == min(sizes)


def test_each_stack_of_blocks_is_cut_by_itself():
    shapes = {**model(2, stack="vision.layers"), **model(4, stack="text.layers")}
    made = plan("mola", shapes, options={"shape": "28"})
    numbers = {unit.name: unit.experts for unit in made.units}
    assert [numbers[f"vision.layers.{i}"] for i in range(2)] == [2, 8]
    assert [numbers[f"text.layers.{i}"] for i in range(4)] == [2, 2, 8, 8]


def test_a_layer_outside_any_stack_gets_the_mean():
    made = plan("mola", {**model(4), "projector": (8, 8)}, options={"shape": "28"})
    assert {unit.name: unit.experts for unit in made.units}["projector"] == 5


def test_a_stack_with_too_few_blocks_is_named():
    shapes = {**model(2, stack="vision.layers"), **model(3, stack="text.layers")}
    with pytest.raises(
        StrategyError, match=r"strategy 'mola': text\.layers: 4 numbers in shape .*, but 3 blocks"
    ):
        plan("mola", shapes, options={"shape": 2468})


def test_a_budget_scales_the_shape():
    made = plan("mola", model(8), options={"shape": 2468}, budget={"total_experts": 80})
    assert experts(made) == [4, 4, 8, 8, 12, 12, 16, 16]


@QUICK
@given(st.data())
def test_any_shape_and_budget(data):
    shapes = model(data.draw(st.integers(1, 6)))
    blocks = len(shapes) // 3
    budget = data.draw(budgets(shapes))
    shape = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=blocks).filter(any))
    made = plan("mola", shapes, options={"shape": shape}, budget=budget, optimizer="adamw_torch")
    # Scores of zero come last, and get the least as long as the others can have more.
    if all(shape):
        assert_well_spent(made, shapes, "block", budget)
    assert made.budget["spent"] <= made.budget["asked"]


def test_numbers_that_break_a_bound_are_refused():
    with pytest.raises(StrategyError, match="'mola': .* gets 8 experts, more than max_experts 6"):
        plan("mola", model(4), options={"shape": 2468}, budget={"max_experts": 6})
    with pytest.raises(StrategyError, match="'mola': .* gets 0 experts, fewer than min_experts 1"):
        plan("mola", model(4), options={"shape": "0246"})


def test_a_short_list_of_projectors_beside_a_tower_gets_the_mean():
    """Qwen3-VL has three of them, which look like a stack of blocks."""
    shapes = model(8) | model(3, stack="visual.merger_list")
    found = plan("mola", shapes, options={"shape": 2468})
    numbers = {unit.name: unit.experts for unit in found.units}
    assert [numbers[f"model.layers.{i}"] for i in range(8)] == [2, 2, 4, 4, 6, 6, 8, 8]
    assert {numbers[f"visual.merger_list.{i}"] for i in range(3)} == {5}
