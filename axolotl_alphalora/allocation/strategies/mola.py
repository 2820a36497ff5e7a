"""MoLA: fixed shapes over depth."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from pydantic import Field, field_validator

from ..strategy import BudgetUse, Options, Problem, Strategy, hookimpl
from .depth import as_numbers, by_depth, scale_to_budget


class MolaOptions(Options):
    """The shape."""

    shape: list[int] = Field(
        [2, 4, 6, 8],
        description="experts of consecutive groups of blocks: 2468, 10-2-2-2 or [2, 4, 6, 8]",
    )

    @field_validator("shape", mode="before")
    @classmethod
    def _whole_numbers(cls, value: Any) -> Any:
        numbers = as_numbers(value, digits=True)
        if not numbers or any(number != int(number) for number in numbers):
            raise ValueError(
                f"expected a shape such as 2468, 10-2-2-2 or [2, 4, 6, 8], not {value!r}"
            )
        if min(numbers) < 0 or max(numbers) == 0:
            raise ValueError(f"{value!r} has a negative number, or no expert at all")
        return [int(number) for number in numbers]

    @property
    def budget_use(self) -> BudgetUse:
        """A budget scales the shape; without one it says the numbers itself."""
        return "optional"


@hookimpl
def register_strategy() -> Strategy:
    """Describe the strategy."""
    return Strategy(
        name="mola",
        summary="a fixed shape over depth: 2468, 8642, 8228, 2882, 5555, 8888, or any list",
        options=MolaOptions,
        reference="MoLA, arXiv 2402.08562",
        shorthand="shape",
    )


@hookimpl
def score(problem: Problem) -> dict[str, float]:
    """Return the shape's number at each block.

    L blocks are cut into G consecutive groups as equal as can be: the first L mod G groups have
    one block more. Each stack of blocks (a vision tower, a decoder) is cut by itself; a layer
    outside any stack (a projector) gets the shape's mean, and so does a stack with fewer blocks
    than the shape has numbers (a list of projectors) beside a longer one.

    Raises:
        ValueError: If no stack has as many blocks as the shape has numbers.
    """
    shape = problem.options.shape

    def number(place: int, blocks: int) -> float:
        if blocks < len(shape):
            raise ValueError(f"{len(shape)} numbers in shape {shape}, but {blocks} blocks")
        size, larger = divmod(blocks, len(shape))
        start = larger * (size + 1)
        group = place // (size + 1) if place < start else larger + (place - start) // size
        return float(shape[group])

    return by_depth(problem.units, number, outside=fmean(shape), least=len(shape))


@hookimpl
def allocate(problem: Problem, scores: dict[str, float]) -> dict[str, int]:
    """Take the shape's numbers, or scale them to the budget."""
    return scale_to_budget(problem, scores)
