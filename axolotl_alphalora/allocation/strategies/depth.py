"""A straight line over depth, as PRILoRA draws it for ranks; and how numbers lie over depth."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import Field, field_validator

from ...blocks import stack_of
from ..spending import largest_remainder
from ..strategy import BudgetUse, Options, Problem, Strategy, hookimpl


class DepthOptions(Options):
    """The ends of the line."""

    ramp: list[float] = Field(
        [2.0, 8.0], description="experts of the first and of the last block: 2-8 or [2, 8]"
    )

    @field_validator("ramp", mode="before")
    @classmethod
    def _two_numbers(cls, value: Any) -> Any:
        numbers = as_numbers(value, digits=False)
        if len(numbers) != 2 or min(numbers) < 0 or max(numbers) == 0:
            raise ValueError(f"expected two numbers such as 2-8, not {value!r}")
        return numbers

    @property
    def budget_use(self) -> BudgetUse:
        """A budget scales the line; without one it says the numbers itself."""
        return "optional"


@hookimpl
def register_strategy() -> Strategy:
    """Describe the strategy."""
    return Strategy(
        name="depth",
        summary="a straight line from the first block to the last",
        options=DepthOptions,
        reference="PRILoRA, arXiv 2401.11316, draws it for ranks",
        shorthand="ramp",
    )


@hookimpl
def score(problem: Problem) -> dict[str, float]:
    """Return the line's value at each block; each stack of blocks has a line of its own.

    A layer outside any stack of blocks gets the middle of the line.
    """
    first, last = problem.options.ramp

    def value(place: int, blocks: int) -> float:
        return first + (last - first) * (place / (blocks - 1) if blocks > 1 else 0.5)

    return by_depth(problem.units, value, outside=(first + last) / 2)


@hookimpl
def allocate(problem: Problem, scores: dict[str, float]) -> dict[str, int]:
    """Round the line to whole numbers, or scale it to the budget."""
    return scale_to_budget(problem, scores)


def as_numbers(value: Any, digits: bool) -> list[float]:
    """Read numbers from a list, from text such as `10-2-2-2`, or from a string of digits.

    Args:
        value: What the user wrote; YAML reads `2468` as a number.
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
    blocks: Mapping[str, Sequence[str]],
    value: Callable[[int, int], float],
    outside: float,
    least: int = 1,
) -> dict[str, float]:
    """Give every block a value by its place.

    Args:
        blocks: Names of the blocks, in order, to the names of their modules.
        value: Takes a block's place in its stack, from 0, and the number of blocks there.
        outside: Value of a layer that is in no stack of blocks, such as a projector, or in one
            that is too short for a depth.
        least: Blocks that a stack must have, where another has them.

    Raises:
        ValueError: Whatever `value` raises, with the name of the stack.
    """
    stacks: dict[str, list[str]] = {}
    found = dict.fromkeys(blocks, outside)
    for block, modules in blocks.items():
        if stack_of(modules[0]) != modules[0]:
            stacks.setdefault(stack_of(modules[0]), []).append(block)
    if max(map(len, stacks.values()), default=0) >= least:
        stacks = {stack: members for stack, members in stacks.items() if len(members) >= least}
    for stack, members in stacks.items():
        for place, block in enumerate(members):
            try:
                found[block] = value(place, len(members))
            except ValueError as error:
                raise ValueError(f"{stack}: {error}") from error
    return found


def scale_to_budget(problem: Problem, numbers: Mapping[str, float]) -> dict[str, int]:
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
