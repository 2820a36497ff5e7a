"""The same number of experts everywhere."""

from __future__ import annotations

from ..strategy import Options, Problem, Strategy, hookimpl


@hookimpl
def register_strategy() -> Strategy:
    """Describe the strategy."""
    return Strategy(
        name="uniform",
        summary="the same number everywhere; what cannot be shared evenly goes to the first blocks",
        options=Options,
    )


@hookimpl
def allocate(problem: Problem) -> dict[str, int]:
    """Spend the budget evenly."""
    return problem.spend(dict.fromkeys(problem.units, 1.0))
