"""The hooks of an allocation strategy.

A strategy is a module, or any object, with the first of these hooks and at least one of the other
two, marked with :data:`hookimpl`. A package offers it in its entry points::

    [project.entry-points."axolotl_alphalora.strategies"]
    my-strategy = "my_package.my_module"

Hooks may leave out parameters that they do not need.
"""

from __future__ import annotations

from collections.abc import Mapping

import pluggy

from .strategy import Problem, Strategy

GROUP = "axolotl_alphalora.strategies"
"""The entry-point group of strategies."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec(firstresult=True)
def register_strategy() -> Strategy:
    """Say what the strategy is called, what it goes by and which options it takes."""
    raise NotImplementedError


@hookspec(firstresult=True)
def score(problem: Problem) -> Mapping[str, float] | None:
    """Say what speaks for giving each unit experts.

    The plan records the scores. Without :func:`allocate`, the budget is spent in proportion to
    them, so that they must be finite and not negative.

    Args:
        problem: What is to be decided.

    Returns:
        Unit name to score, one for every unit of ``problem.units``; None for no scores.

    Raises:
        ValueError: If there can be none; says why.
    """


@hookspec(firstresult=True)
def allocate(problem: Problem, scores: Mapping[str, float]) -> Mapping[str, int]:
    """Say how many experts each unit, or each module, gets.

    Args:
        problem: What is to be decided.
        scores: What :func:`score` returned, empty if nothing.

    Returns:
        Number of experts for every unit of ``problem.units``, or for every module of
        ``problem.shapes``; 0 leaves the modules alone. The numbers must keep to the bounds and
        must not cost more than the budget: see :meth:`Problem.spend`.

    Raises:
        ValueError: If the budget cannot be met; says why.
    """
    raise NotImplementedError
