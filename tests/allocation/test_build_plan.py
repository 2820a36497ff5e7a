"""Plans are built from shapes, scores and a budget."""

import json

import pytest

from axolotl_alphalora.allocation import Plan, build_plan
from axolotl_alphalora.spectral import MatrixQuality

SHAPES = {
    f"model.layers.{block}.{name}": shape
    for block in (0, 1, 10)
    for name, shape in {"self_attn.q_proj": (8, 8), "mlp.up_proj": (24, 8)}.items()
}
SCORES = {"model.layers.0": 2.0, "model.layers.1": 3.0, "model.layers.10": 4.0}


def build(**changes):
    arguments = {
        "base_model": "some/model",
        "weights": {"source": "live", "dtype": "float32", "quantization": None},
        "shapes": SHAPES,
        "scores": SCORES,
        "total_experts": 9,
    }
    return build_plan(**{**arguments, **changes})


def test_every_module_gets_its_blocks_experts():
    plan = build()
    assert [block.name for block in plan.blocks] == list(SCORES)
    assert plan.total_experts == 9
    by_block = {block.name: block.experts for block in plan.blocks}
    assert by_block["model.layers.0"] < by_block["model.layers.10"]
    for module, count in plan.counts.items():
        assert count == by_block[".".join(module.split(".")[:3])]


def test_the_settings_are_recorded():
    plan = build(options={"beta": 1}, min_experts=2, max_experts=5, top_k=1, rank=4)
    assert plan.strategy == {
        "name": "alphalora",
        "estimator": "xmin_peak",
        "window": None,
        "aggregate": "mean",
        "normalize": False,
        "beta": 1.0,
    }
    assert plan.budget == {"total_experts": 9, "min_experts": 2, "max_experts": 5}
    assert (plan.top_k, plan.rank) == (1, 4)


def test_experts_per_block_is_a_mean_that_may_be_fractional():
    plan = build(total_experts=None, experts_per_block=2.7)
    assert plan.budget["total_experts"] == plan.total_experts == 8


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
    plan = build(qualities=[quality], intervals={"model.layers.1": (2.5, 3.5)})
    rows = {module.name: module for module in plan.modules}
    assert rows[name].shape == (24, 8), "the layer's, not the stored weight's"
    assert (rows[name].tail_size, rows[name].numerical_rank) == (4, 7)
    assert rows[name].note == "rank 7 of 8"
    assert rows["model.layers.0.mlp.up_proj"].alpha is None
    assert [block.interval for block in plan.blocks] == [None, (2.5, 3.5), None]
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "alphamale"}, "unknown strategy 'alphamale': choose one of alphalora"),
        ({"options": {"gamma": 1}}, "no option 'gamma': it takes aggregate, beta, estim"),
        ({"options": {"beta": "2"}}, "option 'beta' .* must be a float, not '2'"),
        ({"options": {"beta": True}}, "option 'beta' .* must be a float, not True"),
        ({"options": {"estimator": "best"}}, "unknown estimator 'best': choose one of xmin_peak"),
        ({"options": {"estimator": 1}}, "'alphalora': unknown estimator 1: choose one of"),
        ({"options": {"window": 2}}, r"window must be null, .auto., a side.* not 2$"),
        ({"options": {"aggregate": "max"}}, "unknown aggregate 'max': choose one of mean, median"),
        ({"options": {"normalize": 1}}, "normalize must be true or false, not 1"),
        ({"experts_per_block": 3}, "exactly one of total_experts and experts_per_block"),
        ({"total_experts": None}, "exactly one of total_experts and experts_per_block"),
        ({"total_experts": 2}, "total must be at least 3 for 3 blocks"),
        ({"max_experts": 2}, "total must lie between 3 and 6 for 3 blocks"),
        ({"top_k": 0}, "top_k is 0"),
        ({"rank": 0}, "rank is 0"),
        ({"scores": {"model.layers.0": 2.0}}, "'model.layers.1' has modules to adapt but no score"),
        ({"scores": {**SCORES, "x.0": 2.0}}, "'x.0' has a score but no module"),
        ({"shapes": {}, "scores": {}}, "no modules"),
    ],
)
def test_unusable_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)
