"""A straight line over depth, as PRILoRA draws it for ranks."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from axolotl_alphalora.allocation.hookspecs import hookimpl
from axolotl_alphalora.allocation.shapes import as_numbers, by_depth, share_out
from axolotl_alphalora.allocation.strategy import BudgetUse, Options, Problem, Strategy


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
    return share_out(problem, scores)
