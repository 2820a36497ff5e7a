"""What a plan counts is what the adapter that is made from it trains, for every shape."""

import itertools

import pytest
from peft import get_peft_model

from axolotl_alphalora.adapter import AlphaLoraConfig
from axolotl_alphalora.planning import Targets
from helpers.allocating import plan as planned
from helpers.deep import base

SHAPES = [
    dict(zip(("top_k", "segments", "router_rank", "share_a"), values, strict=True))
    for values in itertools.product((2, 0.5), (1, 4), (None, 3), (False, True))
]


@pytest.fixture(scope="module", params=["llama", "qwen2-moe"])
def bare(request):
    """A model, and its target layers."""
    model = base(request.param)
    return model, Targets(linear=True).resolve(model)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape.values())))
def test_trainable_parameters_are_those_of_the_adapted_model(bare, shape):
    model, shapes = bare
    made = planned("counts", shapes, options={"experts": [1, 2, 3, 0, 5, 1]}, rank=4, **shape)
    config = AlphaLoraConfig(
        r=made.rank, num_experts=made.counts, plan=made.to_dict(), **vars(made.mixture)
    )
    adapted = get_peft_model(model, config)
    try:
        trainable, _ = adapted.get_nb_trainable_parameters()
        assert trainable == made.trainable_parameters
    finally:
        adapted.unload()
