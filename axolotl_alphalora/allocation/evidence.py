"""Whether what a strategy needs was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .strategy import Problem, Strategy


def check_evidence(strategy: Strategy, problem: Problem) -> None:
    """Check that what a strategy needs was measured for everything it decides on.

    Raises:
        ValueError: If it was not; names the first unit or module.
    """
    needs = strategy.needs
    if needs == "quality":
        for unit in problem.units:
            if unit not in problem.alphas:
                raise ValueError(f"{unit!r} has modules to adapt but no alpha")
        for unit in problem.alphas:
            if unit not in problem.units:
                raise ValueError(f"{unit!r} has an alpha but no module to adapt")
    if needs == "sensitivity" and not problem.sensitivities:
        raise ValueError(f"strategy {strategy.name!r} needs sensitivities")
    tables: dict[str, Mapping[str, Any]] = {
        f"sensitivity in the task {task!r}": values
        for task, values in problem.sensitivities.items()
    }
    if needs == "activations":
        tables["explained variance"] = problem.explained_variances
    for what, values in tables.items():
        missing = next((name for name in problem.shapes if name not in values), None)
        if missing is not None:
            raise ValueError(f"{missing} has no {what}")
