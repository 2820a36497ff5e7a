"""Numbers that the user gives: a list, patterns, or another plan's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from ..plan import Plan
from ..strategy import BudgetUse, Options, Problem, Strategy, hookimpl


class CountsOptions(Options):
    """The numbers."""

    experts: list[int] | dict[str, int] | str | None = Field(
        None,
        description="a number for each block, a mapping of module patterns, or a plan file",
    )

    @field_validator("experts")
    @classmethod
    def _check(cls, value: Any) -> Any:
        numbers = value.values() if isinstance(value, dict) else value
        if isinstance(numbers, str):
            Plan.load(numbers)
        elif numbers is not None and (not numbers or min(numbers) < 0):
            raise ValueError(f"expected numbers of experts, 0 or more, not {value!r}")
        for pattern in value if isinstance(value, dict) else ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return value

    @property
    def budget_use(self) -> BudgetUse:
        """The numbers are the user's."""
        return "none"


@hookimpl
def register_strategy() -> Strategy:
    """Describe the strategy."""
    return Strategy(
        name="counts",
        summary="numbers that you give: for each block, by module patterns, or from a plan file",
        options=CountsOptions,
        shorthand="experts",
    )


@hookimpl
def allocate(problem: Problem) -> dict[str, int]:
    """Take the numbers for blocks or modules.

    Raises:
        ValueError: If they do not fit the model; names the first block, module or pattern.
    """
    given = problem.options.experts
    if given is None:
        raise ValueError(
            "the option experts is missing: give a list with a number for each block, a mapping "
            "of module patterns, or the path of a plan"
        )
    if isinstance(given, str):
        return _of_plan(problem, given)
    if isinstance(given, dict):
        return _of_patterns(problem, given)
    if len(given) != len(problem.units):
        raise ValueError(
            f"experts has {len(given)} numbers, but the model has {len(problem.units)} blocks"
        )
    return dict(zip(problem.units, given, strict=True))


def _of_plan(problem: Problem, path: str) -> dict[str, int]:
    planned = Plan.load(path).numbers
    for name in problem.shapes:
        if name not in planned:
            raise ValueError(f"the plan {path} has no module {name}")
    for name in planned:
        if name not in problem.shapes:
            raise ValueError(f"the plan {path} has {name}, which is no target module here")
    return planned


def _of_patterns(problem: Problem, given: Mapping[str, int]) -> dict[str, int]:
    """The first pattern that matches the end of a module's name decides, as in PEFT's patterns."""
    found: dict[str, int] = {}
    used = set()
    for name in problem.shapes:
        for pattern, count in given.items():
            if re.fullmatch(rf"(.*\.)?({pattern})", name):
                found[name] = count
                used.add(pattern)
                break
        else:
            raise ValueError(
                f"no pattern of experts matches {name}: add one, such as '.*': 1 at the end"
            )
    for pattern in given:
        if pattern not in used:
            raise ValueError(f"the pattern {pattern!r} of experts decides no target module")
    return found
