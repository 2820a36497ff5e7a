"""`order`: a scored strategy's own numbers, dealt otherwise: controls for experiments."""

import json
from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from axolotl_alphalora.allocation import Plan, StrategyError, alike, registry
from axolotl_alphalora.blocks import group_by_unit
from axolotl_alphalora.planning import rank_correlation
from helpers.allocating import QUICK, budgets, experts, model, plan, sizes, with_alphas

SHAPES = model(6)
ALPHAS = [2.0, 6.0, 3.0, 5.0, 2.5, 4.0]


def by_alphas(shapes=SHAPES, alphas=ALPHAS, granularity="block", budget=None, **options):
    others = {"spend": options.pop("spend")} if "spend" in options else {}
    return plan(
        "alphalora",
        shapes,
        options={"granularity": granularity, **options},
        budget=budget or {"total_experts": 30},
        evidence=with_alphas(shapes, alphas, granularity),
        optimizer="adamw_torch",
        **others,
    )


def histograms(made: Plan):
    """How often each number stands among modules of each shape."""
    return Counter((module.shape, module.experts, module.rank) for module in made.modules)


@st.composite
def decided(draw):
    """A model, whose first block may lack a layer, scores, and a budget of any kind."""
    shapes = draw(sizes())
    granularity = draw(st.sampled_from(["block", "module"]))
    units = group_by_unit(shapes, granularity)
    alphas = draw(st.lists(st.floats(1.1, 9.0), min_size=len(units), max_size=len(units)))
    return shapes, alphas, granularity, draw(budgets(shapes))


@pytest.mark.works("Plans", "controls of any scored strategy: `order: opposite`, `order: shuffled`")
@given(decided(), st.sampled_from(["opposite", "shuffled"]), st.integers(0, 99))
@QUICK
def test_histogram_cost_and_bounds_stay_whatever_the_scores(problem, order, seed):
    seeded = {"order_seed": seed} if order == "shuffled" else {}
    made = by_alphas(*problem)
    try:
        control = by_alphas(*problem, order=order, **seeded)
    except StrategyError as error:
        assume("nothing to" not in str(error) and "the same plan" not in str(error))
        raise
    assert histograms(control) == histograms(made)
    assert control.budget == made.budget
    assert control.trainable_parameters == made.trainable_parameters
    assert control.total_experts == made.total_experts
    assert [unit.score for unit in control.units] == [unit.score for unit in made.units]
    assert control.numbers != made.numbers


def test_opposite_turns_the_ranks_round():
    made, control = by_alphas(), by_alphas(order="opposite")
    scores = {unit.name: unit.score for unit in made.units}
    numbers = [{unit.name: unit.experts for unit in one.units} for one in (made, control)]
    usual, opposite = (rank_correlation(scores, one) for one in numbers)
    assert usual > 0.9 and opposite == pytest.approx(-usual)
    highest, lowest = max(scores, key=scores.get), min(scores, key=scores.get)
    assert numbers[1][highest] == min(experts(made)) and numbers[1][lowest] == max(experts(made))


def test_units_of_equal_score_change_places_too():
    control = by_alphas(alphas=[3.0, 3.0, 2.0, 2.0, 2.0, 2.0], order="opposite")
    made = by_alphas(alphas=[3.0, 3.0, 2.0, 2.0, 2.0, 2.0])
    assert experts(control)[:2] == sorted(experts(made))[:2]


def test_seeds_differ_and_repeat():
    plans = [by_alphas(order="shuffled", order_seed=seed) for seed in [*range(8), *range(8)]]
    assert plans[:8] == plans[8:]
    assert len({tuple(experts(one)) for one in plans}) > 4
    assert by_alphas(order="shuffled") == plans[0]


def test_a_seed_deals_every_strategy_s_numbers_in_the_same_way():
    first = by_alphas(order="shuffled", order_seed=3)
    other = by_alphas(alphas=[9.0, 1.5, 4.0, 7.0, 3.0, 2.0], order="shuffled", order_seed=3)
    origin = [by_alphas(), by_alphas(alphas=[9.0, 1.5, 4.0, 7.0, 3.0, 2.0])]
    pairs = [
        list(zip(*(experts(one) for one in plans), strict=True))
        for plans in (origin, (first, other))
    ]
    assert pairs[0] != pairs[1] and Counter(pairs[0]) == Counter(pairs[1])


def test_numbers_stay_within_a_stack_and_a_shape():
    shapes = model(3) | model(3, {"mlp.up_proj": (24, 8)}, "vision.blocks") | {"bridge": (24, 8)}
    units = group_by_unit(shapes, "module")
    found = {frozenset(group) for group in alike(shapes, units)}
    assert frozenset(f"model.layers.{i}.mlp.up_proj" for i in range(3)) in found
    assert frozenset(f"vision.blocks.{i}.mlp.up_proj" for i in range(3)) in found
    assert frozenset({"bridge"}) in found
    assert len(found) == 3 + 1 + 1
    assert len(alike(shapes, group_by_unit(shapes))) == 3
    assert len(alike(shapes, group_by_unit(shapes, "group"))) == 4


def test_modules_of_one_shape_deal_among_themselves_whatever_their_kind():
    shapes = model(2, {"self_attn.q_proj": (8, 8), "self_attn.o_proj": (8, 8)})
    assert len(alike(shapes, group_by_unit(shapes, "module"))) == 1


def test_it_may_be_spent_on_rank():
    made, control = (by_alphas(spend="rank", **order) for order in ({}, {"order": "opposite"}))
    assert histograms(made) == histograms(control)
    assert [unit.experts for unit in control.units] != [unit.experts for unit in made.units]


def test_a_saved_plan_says_that_it_is_a_control(tmp_path):
    made, path = by_alphas(order="shuffled", order_seed=7), tmp_path / "plan.json"
    made.save(path)
    assert Plan.load(path) == made and made.control == "shuffled"
    options = json.loads(path.read_text())["strategy"]["options"]
    assert (options["order"], options["order_seed"]) == ("shuffled", 7)
    opposite = by_alphas(order="opposite")
    assert opposite.control == "opposite" and "order_seed" not in opposite.strategy["options"]
    again = registry().get("alphalora").options(opposite.strategy["options"])
    assert again.order == "opposite"
    usual = by_alphas()
    assert usual.control is None and "order" not in usual.strategy["options"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": {"total_experts": 6}}, "since every module gets 1: leave it out"),
        ({"shapes": model(1), "alphas": [3.0]}, r"since there is one unit, 'model\.layers\.0'"),
        (
            {"shapes": model(1, {"a": (8, 8), "b": (4, 8)}), "granularity": "module"},
            "among units of the same stack and shapes only",
        ),
    ],
)
@pytest.mark.parametrize("order", ["opposite", "shuffled"])
def test_where_nothing_can_be_dealt_it_is_said(changes, message, order):
    changes = {"alphas": [2.0, 5.0] if "granularity" in changes else ALPHAS, **changes}
    with pytest.raises(
        StrategyError, match=rf"strategy 'alphalora': order: {order} has nothing to deal.*{message}"
    ):
        by_alphas(**changes, order=order)


def test_what_is_left_over_among_equal_scores_goes_the_other_way_round():
    alike = {"alphas": [2.0] * 6, "budget": {"total_experts": 33}}
    assert experts(by_alphas(**alike)) == [6, 6, 6, 5, 5, 5]
    assert experts(by_alphas(**alike, order="opposite")) == [5, 5, 5, 6, 6, 6]


def test_a_seed_that_deals_the_same_plan_is_named():
    shapes, found = model(2), set()
    for seed in range(12):
        try:
            control = by_alphas(shapes, [2.0, 5.0], order="shuffled", order_seed=seed)
        except StrategyError as error:
            found.add(str(error).partition("scores, ")[2].split()[0])
        else:
            found.add(tuple(experts(control)))
    assert len(found) == 2 and "order_seed" in found


@pytest.mark.refused("Plans", "controls of strategies without scores (`uniform`, `counts`)")
@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        (
            "uniform",
            {"order": "opposite"},
            "strategy 'uniform' goes by no scores, which order: opp",
        ),
        (
            "counts",
            {"experts": [1, 2], "order": "shuffled"},
            "strategy 'counts' goes by no scores, which order: shuffled could deal",
        ),
        ("alphalora", {"order": "reverse"}, "option 'order' .* should be 'scores', 'opposite' or"),
        ("alphalora", {"order": "shuffled", "order_seed": -1}, "option 'order_seed' .* greater"),
        ("alphalora", {"order_seed": 1}, "order_seed is the seed of order: shuffled: set that"),
        ("uniform", {"beta": 1}, "strategy 'uniform' has no option 'beta': it takes none"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(strategy, options, message):
    with pytest.raises(StrategyError, match=message):
        registry().get(strategy).options(options)


def test_a_strategy_of_another_package_has_it_without_a_line(site):
    source = (
        "@hookimpl\ndef score(problem):\n    return {u: int(u[-1]) + 1 for u in problem.units}\n"
    )
    site.install("stranger", source, name="odd")
    made, control = (
        plan("odd", SHAPES, options=order, budget={"total_experts": 30})
        for order in ({}, {"order": "opposite"})
    )
    assert experts(control) == experts(made)[::-1] != experts(made)


def test_numbers_that_do_not_follow_their_scores_are_turned_round_all_the_same(site):
    """EVA's are few where the variance lies in few components, which makes its score high."""
    source = (
        "@hookimpl\ndef score(problem):\n"
        "    return {u: 9.0 - int(u[-1]) - 20 * (u[-1] == '5') for u in problem.units}\n\n"
        "@hookimpl\ndef allocate(problem):\n"
        "    return {u: int(u[-1]) + 2 for u in problem.units}\n"
    )
    site.install("stranger", source, name="odd")
    made, control = (
        plan("odd", SHAPES, options=order, budget={"total_experts": 27})
        for order in ({}, {"order": "opposite"})
    )
    assert experts(made) == [2, 3, 4, 5, 6, 7] and experts(control) == [7, 6, 5, 4, 3, 2]
    assert made.units[-1].score == -16, "a score beside numbers may be negative"


def test_a_hook_that_returns_no_scores_leaves_nothing_to_go_by(site):
    source = (
        "@hookimpl\ndef score(problem):\n    return None\n\n"
        "@hookimpl\ndef allocate(problem):\n"
        "    return problem.spend(dict.fromkeys(problem.units, 1))\n"
    )
    site.install("stranger", source, name="odd")
    with pytest.raises(StrategyError, match="order: opposite needs scores, and the strategy ret"):
        plan("odd", SHAPES, options={"order": "opposite"}, budget={"total_experts": 33})


def test_a_package_may_not_give_the_name_another_meaning(site):
    source = (
        "from axolotl_alphalora.allocation import Options, Strategy, hookimpl\n"
        "class Own(Options):\n    order: str = 'first'\n"
        "@hookimpl\ndef register_strategy():\n    return Strategy('odd', 'odd', Own)\n"
        "@hookimpl\ndef allocate(problem):\n    return {}\n"
    )
    site.install("stranger", source)
    (problem,) = registry().problems
    assert "its option 'order' is one that all strategies have: rename it" in problem


def test_fixed_shapes_are_scored_too():
    control = plan("mola", model(4), options={"order": "opposite"})
    assert experts(control) == [8, 6, 4, 2]
