"""What a strategy decides is checked against the model and the budget, and blamed by name."""

import pytest

from axolotl_alphalora.allocation import StrategyError, registry
from helpers.allocating import experts, model, plan

EACH = "{unit: 2 for unit in problem.units}"


def deciding(site, *, score=None, allocate=None):
    """Install a strategy that returns the values of expressions."""
    hooks = {"score": score, "allocate": allocate}
    source = "".join(
        f"@hookimpl\ndef {hook}(problem):\n    return {expression}\n\n"
        for hook, expression in hooks.items()
        if expression is not None
    )
    site.install("stranger", source, name="odd")
    assert registry().problems == []


def test_numbers_of_units_or_of_modules(site):
    deciding(site, allocate="{name: shape[0] // 4 for name, shape in problem.shapes.items()}")
    made = plan("odd", model(2), budget={"total_experts": 6})
    assert list(made.counts.values()) == [2, 1, 6] * 2
    assert [unit.experts for unit in made.units] == [3, 3]
    assert made.block_numbers == {"model.layers.0": 3, "model.layers.1": 3}
    assert made.budget["unspent"] == 0


def test_numpy_numbers_will_do(site):
    deciding(site, allocate="dict.fromkeys(problem.units, __import__('numpy').int64(5))")
    counts = plan("odd", budget={"total_experts": 20}).counts
    assert set(map(type, counts.values())) == {int}


@pytest.mark.parametrize("kind", ["float32", "float64", "int64"])
@pytest.mark.parametrize("hook", ["score", "allocate"])
def test_numpy_scores_and_weights_will_do(site, kind, hook):
    found = f"{{u: __import__('numpy').{kind}(4 - i) for i, u in enumerate(problem.units)}}"
    deciding(site, **{hook: found if hook == "score" else f"problem.spend({found})"})
    made = plan("odd", budget={"total_experts": 20})
    assert experts(made) == [8, 6, 4, 2]
    assert hook == "allocate" or [type(unit.score) for unit in made.units] == [float] * 4


def test_scores_are_spent_where_there_is_no_allocate_hook(site):
    deciding(site, score="{unit: len(problem.units) - i for i, unit in enumerate(problem.units)}")
    assert experts(plan("odd", budget={"total_experts": 20})) == [8, 6, 4, 2]


def test_scores_are_recorded_where_the_strategy_allocates_itself(site):
    deciding(site, score="dict.fromkeys(problem.units, 0.5)", allocate=EACH)
    made = plan("odd", budget={"total_experts": 8})
    assert [(unit.score, unit.experts) for unit in made.units] == [(0.5, 2)] * 4


SPARE = "{**dict.fromkeys(problem.units, 1), 'model.layers.9': 1}"


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"allocate": "None"}, r"'model\.layers\.0\.self_attn\.q_proj' has no number of experts"),
        ({"allocate": "[1, 2]"}, r"its allocate hook returned \[1, 2\], which is no mapping"),
        ({"score": "3"}, "its score hook returned 3, which is no mapping"),
        ({"allocate": SPARE}, r"'model\.layers\.9' has a number of experts and is no unit of this"),
        ({"allocate": "{'lm_head': 1}"}, r"q_proj' has no number of experts"),
        (
            {"allocate": "{**dict.fromkeys(problem.shapes, 1), 'lm_head': 1}"},
            "'lm_head' has a number of experts and is no target module of this model",
        ),
        ({"allocate": "{'model.layers.0': 1}"}, r"'model\.layers\.1' has no number of experts"),
        (
            {"allocate": "dict.fromkeys(problem.units, -1)"},
            r"'model\.layers\.0' gets -1 experts: 0 is the fewest",
        ),
        ({"allocate": "dict.fromkeys(problem.units, 2.0)"}, "gets 2.0 experts, which is no whole"),
        ({"allocate": "dict.fromkeys(problem.units, True)"}, "gets True experts, which is no who"),
        ({"allocate": "dict.fromkeys(problem.units, '2')"}, "gets '2' experts, which is no whole"),
        (
            {"allocate": "dict.fromkeys(problem.units, 6)"},
            r"its experts cost 24, more than the budget of total_experts 20 \(20\)",
        ),
        ({"allocate": "dict.fromkeys(problem.units, 0)"}, "q_proj gets 0 experts, fewer than min"),
        ({"score": "{'model.layers.0': 1}"}, r"'model\.layers\.1' has no score"),
        ({"score": "dict.fromkeys(problem.shapes, 1)"}, r"'model\.layers\.0' has no score"),
        ({"score": "dict.fromkeys(problem.units, 'x')"}, "the score of .* is 'x', not a number"),
        ({"score": "dict.fromkeys(problem.units, True)"}, "the score of .* is True, not a number"),
        ({"score": "dict.fromkeys(problem.units, -1)"}, "is -1: it must be finite, 0 or larger"),
        ({"score": "dict.fromkeys(problem.units, float('nan'))"}, "is nan: it must be finite"),
        ({"score": "dict.fromkeys(problem.units, 0.0)"}, "all weights are zero"),
        ({"score": "{}"}, "its score hook returned no scores, and it has no allocate hook"),
        ({"score": "None"}, "its score hook returned no scores, and it has no allocate hook"),
        (
            {"allocate": "dict.fromkeys(problem.units, 4)"},
            "its experts cost 16 of 20, which leaves room for more: spend the whole budget",
        ),
        ({"score": "{}['missing']"}, "KeyError: 'missing'"),
        ({"allocate": "problem.no_such_thing"}, "AttributeError: .*no_such_thing"),
        ({"allocate": "1 / 0"}, "ZeroDivisionError: division by zero"),
    ],
)
def test_a_decision_that_does_not_fit_is_refused_by_strategy_and_package(site, hooks, message):
    deciding(site, **hooks)
    with pytest.raises(StrategyError, match=rf"^strategy 'odd' of stranger 1\.0: .*{message}"):
        plan("odd", budget={"total_experts": 20})
    assert experts(plan("uniform", budget={"total_experts": 20})) == [5] * 4


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"total_parameters": 100_000}, r"its experts cost \S+, more than the budget of total_p"),
        ({"memory_mib": 0.5}, r"its experts cost \S+, more than the budget of memory_mib 0\.5"),
        ({"max_experts": 50}, "q_proj gets 99 experts, more than max_experts 50"),
    ],
)
def test_every_kind_of_budget_is_checked(site, budget, message):
    deciding(site, allocate="dict.fromkeys(problem.units, 99)")
    with pytest.raises(StrategyError, match=message):
        plan("odd", budget=budget, optimizer="adamw_torch")


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_8bit"])
@pytest.mark.parametrize("budget", [{"memory_mib": 500.0}, {"total_parameters": 10**7}])
def test_a_budget_that_is_left_unspent_is_refused_in_every_currency(site, budget, optimizer):
    deciding(site, allocate="dict.fromkeys(problem.units, 1)")
    with pytest.raises(StrategyError, match=r"its experts cost \S+ of \S+, which leaves room"):
        plan("odd", budget=budget, optimizer=optimizer)


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_8bit", "adamw_torch_4bit"])
def test_what_is_spent_in_proportion_leaves_no_room_in_memory(site, optimizer):
    """The state of 8-bit optimizers falls where a tensor is large enough to be quantised."""
    shapes = model(3, {"mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96)})
    deciding(site, score="{unit: 3 + i for i, unit in enumerate(problem.units)}")
    for step in range(12):
        made = plan("odd", shapes, budget={"memory_mib": 0.15 + step / 8}, optimizer=optimizer)
        assert made.budget["spent"] <= made.budget["asked"]


def test_room_for_the_cheapest_expert_alone_may_stay(site):
    shapes = {"model.layers.0.a": (64, 64), "model.layers.1.a": (512, 512)}
    deciding(site, score="dict.fromkeys(problem.units, 1)")
    made = plan("odd", shapes, rank=8, budget={"total_parameters": 66_000})
    assert list(made.counts.values()) == [7, 6] and made.budget["unspent"] == 6160
