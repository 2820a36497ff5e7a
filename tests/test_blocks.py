"""Modules are grouped by decoder block."""

import pytest

from axolotl_alphalora.blocks import block_name, group_by_block


@pytest.mark.parametrize(
    ("module", "block"),
    [
        ("model.layers.3.self_attn.q_proj", "model.layers.3"),
        ("transformer.h.0.attn.c_attn", "transformer.h.0"),
        ("model.layers.12.mlp.experts.7.down_proj", "model.layers.12"),
        ("h.5", "h.5"),
        ("lm_head", "lm_head"),
        ("model.layer2norm.weight", "model.layer2norm.weight"),
    ],
)
def test_a_block_ends_at_the_first_number(module, block):
    assert block_name(module) == block


def test_blocks_come_in_numeric_order_and_modules_in_the_order_given():
    names = ["m.10.b", "m.2.b", "lm_head", "m.2.a", "m.10.a"]
    grouped = group_by_block(names)
    assert list(grouped.items()) == [
        ("lm_head", ["lm_head"]),
        ("m.2", ["m.2.b", "m.2.a"]),
        ("m.10", ["m.10.b", "m.10.a"]),
    ]


def test_no_names_give_no_blocks():
    assert group_by_block([]) == {}
