"""Modules are grouped by decoder block, and by finer units of it."""

import pytest

from axolotl_alphalora.blocks import (
    block_name,
    group_by_block,
    group_by_unit,
    kind_of,
    part_of,
    stack_of,
)


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


@pytest.mark.parametrize(
    ("module", "stack", "kind"),
    [
        ("model.layers.3.self_attn.q_proj", "model.layers", "self_attn.q_proj"),
        ("model.layers.12.mlp.experts.7.down_proj", "model.layers", "mlp.experts.7.down_proj"),
        ("vision.blocks.0.fc", "vision.blocks", "fc"),
        ("lm_head", "lm_head", "lm_head"),
    ],
)
def test_a_module_has_a_stack_and_a_kind(module, stack, kind):
    assert (stack_of(module), kind_of(module)) == (stack, kind)


@pytest.mark.parametrize(
    ("module", "part"),
    [
        ("model.layers.0.self_attn.q_proj", "attention"),
        ("transformer.h.0.attn.c_attn", "attention"),
        ("model.layers.0.linear_attn.in_proj", "attention"),
        ("encoder.layer.0.Attention.query", "attention"),
        ("model.layers.0.mlp.up_proj", "mlp"),
        ("model.layers.0.block_sparse_moe.experts.1.w1", "mlp"),
        ("attn_layers.0.mlp.up_proj", "mlp"),
        ("lm_head", "mlp"),
    ],
)
def test_what_comes_after_the_block_says_which_part_a_module_is_of(module, part):
    assert part_of(module) == part


NAMES = ["m.10.mlp.up", "m.2.mlp.up", "m.2.attn.q", "lm_head", "m.2.attn.v", "m.10.mlp.down"]


def test_units_are_blocks_unless_told_otherwise():
    assert group_by_unit(NAMES) == group_by_unit(NAMES, "block") == group_by_block(NAMES)


def test_groups_part_the_attention_of_a_block_from_its_mlp():
    assert list(group_by_unit(NAMES, "group").items()) == [
        ("lm_head mlp", ["lm_head"]),
        ("m.2 mlp", ["m.2.mlp.up"]),
        ("m.2 attention", ["m.2.attn.q", "m.2.attn.v"]),
        ("m.10 mlp", ["m.10.mlp.up", "m.10.mlp.down"]),
    ]


def test_single_modules_are_units_in_the_order_of_their_blocks():
    units = group_by_unit(NAMES, "module")
    assert list(units) == [name for names in group_by_block(NAMES).values() for name in names]
    assert all(names == [unit] for unit, names in units.items())


def test_an_unknown_granularity_is_named():
    with pytest.raises(ValueError, match="granularity 'row': choose one of block, group, module"):
        group_by_unit(NAMES, "row")
