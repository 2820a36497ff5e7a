"""What model cards say, in Markdown."""

import pytest

from axolotl_alphalora.adapter import AlphaLoraConfig
from axolotl_alphalora.report.markdown import experts_section
from helpers.allocating import planned


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
