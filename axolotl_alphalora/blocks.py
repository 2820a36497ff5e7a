"""Which decoder block a module belongs to, and which unit of it shares a number of experts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

GRANULARITIES = ("block", "group", "module")
"""How finely numbers of experts may differ: by block, attention and MLP apart, or by module."""

Shapes = Mapping[str, tuple[int, int]]
"""Module name to output features and input features."""

_NUMBER = re.compile(r"(\d+)")


def block_name(module_name: str) -> str:
    """Return the decoder block that a module belongs to.

    The block is the dotted prefix up to and including the first integer component.

    Args:
        module_name: Dotted module name, such as `model.layers.3.self_attn.q_proj`.

    Returns:
        The block's name, such as `model.layers.3`. A module outside any numbered block is a
        block by itself: its own name is returned.
    """
    parts = module_name.split(".")
    for position, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[: position + 1])
    return module_name


def stack_of(module_name: str) -> str:
    """Return the list of blocks that a module belongs to, such as `model.layers`.

    The vision and the text blocks of a model are two. A module outside any block is its own.
    """
    block = block_name(module_name)
    return block if block == module_name else block.rpartition(".")[0]


def kind_of(module_name: str) -> str:
    """Return what follows the block in a module's name, such as `self_attn.q_proj`.

    A module outside any block is a kind by itself.
    """
    return module_name.removeprefix(f"{block_name(module_name)}.")


def kind_in_stack(module_name: str) -> str:
    """Return a module's kind with its stack, by which matrices of equal kind are compared."""
    return f"{stack_of(module_name)} {kind_of(module_name)}"


def group_by_block(names: Iterable[str]) -> dict[str, list[str]]:
    """Group module names by their decoder block.

    Returns:
        Block name to the names of its modules. Blocks come in natural order (block 2 before
        block 10), the modules of a block in the order given.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(block_name(name), []).append(name)
    return {block: groups[block] for block in sorted(groups, key=_natural_key)}


def part_of(module_name: str) -> str:
    """Return which part of its block a module belongs to: `attention` or `mlp`.

    A module is attention if a component of its name after the block's contains `attn` or
    `attention`, in any case; everything else counts as MLP.
    """
    kind = kind_of(module_name).lower()
    return "attention" if "attn" in kind or "attention" in kind else "mlp"


def group_by_unit(names: Iterable[str], granularity: str = "block") -> dict[str, list[str]]:
    """Group module names by the unit in which all modules get the same number of experts.

    Args:
        names: Dotted module names, in any order.
        granularity: One of `GRANULARITIES`. A unit is named after its block, after its block
            and part (`model.layers.0 attention`), or after its only module.

    Returns:
        Unit name to the names of its modules; blocks in natural order, the units of a block and
        the modules of a unit in the order given.

    Raises:
        ValueError: If the granularity is unknown.
    """
    blocks = group_by_block(names)
    if granularity == "block":
        return blocks
    if granularity not in GRANULARITIES:
        raise ValueError(
            f"unknown granularity {granularity!r}: choose one of {', '.join(GRANULARITIES)}"
        )
    units: dict[str, list[str]] = {}
    for block, modules in blocks.items():
        for name in modules:
            unit = name if granularity == "module" else f"{block} {part_of(name)}"
            units.setdefault(unit, []).append(name)
    return units


def _natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key in which runs of digits compare as numbers."""
    return [
        (0, int(piece), "") if piece.isdecimal() else (1, 0, piece)
        for piece in _NUMBER.split(name)
        if piece
    ]
