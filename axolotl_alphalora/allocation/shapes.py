"""Numbers over depth: reading them, laying them over blocks, rounding them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from axolotl_alphalora.allocation.rounding import largest_remainder
from axolotl_alphalora.allocation.strategy import Problem
from axolotl_alphalora.blocks import stack_of

__all__ = ["as_numbers", "by_depth", "share_out"]


def as_numbers(value: Any, digits: bool) -> list[float]:
    """Read numbers from a list, from text such as ``10-2-2-2``, or from a string of digits.

    Args:
        value: What the user wrote; YAML reads ``2468`` as a number.
        digits: Whether a string of digits stands for as many numbers.

    Returns:
        The numbers; empty if the value is none of these.
    """
    if isinstance(value, list | tuple):
        good = all(
            isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
            for x in value
        )
        return [float(number) for number in value] if good else []
    text = "" if isinstance(value, bool) else str(value)
    if digits and re.fullmatch(r"\d+", text):
        return [float(digit) for digit in text]
    if re.fullmatch(r"\d+(\.\d+)?(-\d+(\.\d+)?)+", text):
        return [float(number) for number in text.split("-")]
    return []


def by_depth(
    blocks: Mapping[str, Sequence[str]], value: Callable[[int, int], float], outside: float
) -> dict[str, float]:
    """Give every block a value by its place.

    Args:
        blocks: Names of the blocks, in order, to the names of their modules.
        value: Takes a block's place in its stack, from 0, and the number of blocks there.
        outside: Value of a layer that is in no stack of blocks, such as a projector.

    Raises:
        ValueError: Whatever ``value`` raises, with the name of the stack.
    """
    stacks: dict[str, list[str]] = {}
    found = dict.fromkeys(blocks, outside)
    for block, modules in blocks.items():
        if stack_of(modules[0]) != modules[0]:
            stacks.setdefault(stack_of(modules[0]), []).append(block)
    for stack, members in stacks.items():
        for place, block in enumerate(members):
            try:
                found[block] = value(place, len(members))
            except ValueError as error:
                raise ValueError(f"{stack}: {error}") from error
    return found


def share_out(problem: Problem, numbers: Mapping[str, float]) -> dict[str, int]:
    """Scale numbers to the budget; without one, round them so that their sum stays.

    Args:
        problem: What is to be decided.
        numbers: Unit name to number.
    """
    if problem.costs.limit is not None:
        return problem.spend(numbers)
    total = round(sum(numbers.values()))
    counts = largest_remainder(list(numbers.values()), total, minimum=0)
    return dict(zip(numbers, counts, strict=True))
