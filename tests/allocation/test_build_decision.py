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
