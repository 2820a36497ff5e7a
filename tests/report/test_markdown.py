"""What model cards say, in Markdown."""

import pytest

from axolotl_alphalora.adapter import AlphaLoraConfig
from axolotl_alphalora.report.markdown import experts_section
from helpers.allocating import plan, planned


def config(made) -> AlphaLoraConfig:
    return AlphaLoraConfig(r=8, num_experts=made.counts, plan=made.to_dict())


@pytest.fixture(name="planned")
def a_plan():
    return planned()


def test_it_says_what_was_planned_and_why(planned):
    text = experts_section(config(planned))
    assert "36 experts on 12 linear layers of 4 blocks" in text
    assert "Planned by `alphalora (" in text and "beta: 2.5" in text
    assert "Budget: 12 experts, met exactly." in text
    for block, number in planned.block_numbers.items():
        assert f"| `{block}` |" in text and f"| {number:g} |" in text
    assert "AutoPeftModelForCausalLM.from_pretrained" in text


def test_without_a_plan_it_lists_the_layers():
    text = experts_section(
        AlphaLoraConfig(num_experts={"model.layers.0.q": 3, "model.layers.1.q": 0})
    )
    assert "| `model.layers.0.q` | 3 |" in text
    assert "layers.1" not in text and "Planned" not in text


SHAPE = {"top_k": 0.5, "segments": 4, "router_rank": 3, "share_a": True}


def test_the_shape_of_the_mixtures_is_said_once_with_a_plan_and_without():
    made = plan("uniform", budget={"total_experts": 20}, **SHAPE)
    for kept in (made.to_dict(), None):
        adapter = AlphaLoraConfig(r=8, num_experts=made.counts, plan=kept, **SHAPE)
        text = experts_section(adapter)
        assert "60 experts on 12 linear layers" in text and "to its 12 best" in text
        said = "5 experts, each cut into 4 of rank 2; 12 of 20 active; routers of rank 3; one A"
        assert text.count(said) == 1


def test_one_expert_in_parts_has_a_router():
    text = experts_section(AlphaLoraConfig(r=8, num_experts={"layers.0.q": 1}, segments=2))
    assert "of which 1 have a router that sends each token to its 2 best" in text
