"""Plans are built from shapes, evidence and a budget."""

import json
from dataclasses import replace

import pytest

from axolotl_alphalora.allocation import Evidence, Plan, check_budget
from axolotl_alphalora.settings import MatrixQuality
from helpers.allocating import experts, model, plan, wanted, with_alphas, with_sensitivities

SHAPES = {
    f"model.layers.{block}.{name}": shape
    for block in (0, 1, 10)
    for name, shape in {"self_attn.q_proj": (8, 8), "mlp.up_proj": (24, 8)}.items()
}
ALPHAS = {"model.layers.0": 2.0, "model.layers.1": 3.0, "model.layers.10": 4.0}
WEIGHTS = {"source": "live", "dtype": "float32", "quantization": None}


def build(alphas=ALPHAS, **changes):
    given = {key: changes.pop(key) for key in ("qualities", "intervals") if key in changes}
    evidence = Evidence(weights=WEIGHTS, alphas=alphas, **given)
    arguments = {"shapes": SHAPES, "budget": {"total_experts": 9}, "evidence": evidence}
    return plan(**{"strategy": "alphalora", **arguments, **changes})


def test_every_module_gets_its_units_experts():
    made = build()
    assert [unit.name for unit in made.units] == list(ALPHAS)
    assert made.total_experts == 9
    by_block = {unit.name: unit.experts for unit in made.units}
    assert by_block["model.layers.0"] < by_block["model.layers.10"]
    for module, count in made.counts.items():
        assert count == by_block[".".join(module.split(".")[:3])]


def test_the_settings_are_recorded():
    made = build(
        options={"beta": 1},
        budget={"total_experts": 9, "min_experts": 2, "max_experts": 5},
        top_k=1,
        rank=4,
    )
    assert made.strategy["name"] == "alphalora"
    assert made.strategy["package"].startswith("axolotl-alphalora ")
    assert made.strategy["options"] == {
        "estimator": "xmin_peak",
        "window": None,
        "aggregate": "mean",
        "normalize": False,
        "beta": 1.0,
        "granularity": "block",
        "rounding": "largest_remainder",
    }
    assert made.budget == {
        "kind": "total_experts",
        "asked": 9,
        "spent": 9,
        "unspent": 0,
        "min_experts": 2,
        "max_experts": 5,
        "optimizer": None,
    }
    assert (made.top_k, made.rank, made.spend) == (1, 4, "experts")
    assert made.weights == WEIGHTS


def test_experts_per_block_is_a_mean_that_may_be_fractional():
    made = build(budget={"experts_per_block": 2.7})
    assert (made.budget["kind"], made.budget["asked"]) == ("total_experts", 8)
    assert made.total_experts == 8


def test_what_is_left_of_a_budget_is_recorded_in_its_unit():
    made = build(budget={"total_parameters": 5000})
    assert made.trainable_parameters == made.budget["spent"] == 5000 - made.budget["unspent"]
    made = build(budget={"memory_mib": 0.1}, optimizer="adamw_torch")
    assert made.budget["asked"] == 0.1
    assert made.budget["spent"] == made.trainable_parameters * 16 / 2**20 <= 0.1
    assert made.budget["unspent"] == pytest.approx(0.1 - made.budget["spent"], abs=2**-20)
    assert made.budget["optimizer"] == "adamw_torch"


@pytest.mark.parametrize("strategy", ["mola", "depth"])
def test_a_strategy_with_numbers_of_its_own_may_do_without_a_budget(strategy):
    made = plan(strategy)
    assert (made.budget["kind"], made.budget["asked"], made.budget["unspent"]) == (None,) * 3
    scaled = plan(strategy, budget={"experts_per_block": 10})
    assert scaled.total_experts == 40


def test_numbers_may_be_spent_on_rank():
    made, ranks = build(), build(spend="rank", rank=8)
    assert experts(ranks) == experts(made)
    assert {module.experts for module in ranks.modules} == {1}
    assert {m.name: m.rank for m in ranks.modules} == {n: 8 * c for n, c in made.counts.items()}
    assert ranks.budget == made.budget


def test_measured_rows_and_intervals_are_recorded():
    name = "model.layers.1.mlp.up_proj"
    quality = MatrixQuality(
        module=name,
        shape=(8, 24),
        alpha=2.5,
        x_min=0.5,
        distance=0.125,
        tail_size=4,
        num_eigenvalues=8,
        numerical_rank=7,
        note="rank 7 of 8",
    )
    made = build(qualities=(quality,), intervals={"model.layers.1": (2.5, 3.5)})
    rows = {module.name: module for module in made.modules}
    assert rows[name].shape == (24, 8), "the layer's, not the stored weight's"
    assert rows[name].quality == replace(quality, shape=(24, 8))
    assert rows["model.layers.0.mlp.up_proj"].quality is None
    assert [unit.interval for unit in made.units] == [None, (2.5, 3.5), None]
    assert Plan.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_the_sample_is_recorded():
    sample = {"tasks": {"task 0": 4}, "seed": 1, "digest": "00ff"}
    shapes = model(1)
    evidence = with_sensitivities(shapes, [1, 2, 3])
    evidence = Evidence(sensitivities=evidence.sensitivities, sample=sample)
    assert plan("sensitivity", shapes, evidence=evidence).sample == sample


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"strategy": "alphamale"},
            "unknown strategy 'alphamale': choose one of alphalora, counts",
        ),
        ({"budget": {"experts_per_block": 3, "total_experts": 9}}, "are both budgets: give only"),
        ({"budget": {"total_experts": 2}}, "total_experts is 2, .* min_experts 1 allows is 3"),
        (
            {"budget": {"total_experts": 9, "max_experts": 2}},
            "strategy 'alphalora': the budget is 9 experts, but max_experts 2 admits 6 only",
        ),
        ({"budget": {"memory_mib": 1}}, "memory_mib needs the optimizer's name"),
        ({"budget": {"total_experts": 0}}, "total_experts must be a whole number above 0, not 0"),
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"top_k": 1.5}, "top_k must be a whole number .* share"),
        ({"segments": 0}, "segments must be at least 1"),
        ({"segments": 3}, r"lora_r\) is 8, which segments: 3 cannot cut"),
        ({"router_rank": 0}, "router_rank must be at least 1"),
        ({"rank": 0}, "rank is 0"),
        ({"spend": "time"}, "spend is 'time': it must be experts or rank"),
        ({"alphas": {"model.layers.0": 2.0}}, "'model.layers.1' has modules to adapt but no alpha"),
        ({"alphas": {**ALPHAS, "x.0": 2.0}}, "'x.0' has an alpha but no module"),
        ({"shapes": {}, "alphas": {}}, "no modules"),
        ({"strategy": "sensitivity"}, "strategy 'sensitivity' needs sensitivities"),
    ],
)
def test_unusable_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_a_module_without_a_sensitivity_is_named():
    evidence = Evidence(sensitivities={"sums": {"model.layers.0.self_attn.q_proj": 1.0}})
    with pytest.raises(ValueError, match=r"q_proj has no sensitivity in the task 'sums'"):
        shapes = {
            "model.layers.0.self_attn.q_proj": (8, 8),
            "model.layers.1.self_attn.q_proj": (8, 8),
        }
        plan("sensitivity", shapes, evidence=evidence)


def test_alphas_must_be_of_the_strategys_units():
    evidence = with_alphas(SHAPES, [2.0, 3.0, 4.0])
    with pytest.raises(ValueError, match="'model.layers.0 attention' has modules to adapt but no"):
        plan("alphalora", SHAPES, options={"granularity": "group"}, evidence=evidence)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"total_experts": 2}, "total_experts is 2, .* min_experts 1 allows is 3"),
        ({"total_experts": 9, "max_experts": 2}, "max_experts 2 admits 6 only"),
        ({"total_parameters": 100}, "total_parameters is 100, .* lower the rank or min_experts"),
        ({"total_experts": 9}, None),
        ({}, None),
    ],
)
def test_a_budget_is_checked_before_anything_is_measured(budget, message):
    request = wanted("alphalora", budget=budget)
    if message is None:
        check_budget(request, SHAPES)
    else:
        with pytest.raises(ValueError, match=message):
            check_budget(request, SHAPES)
