"""What is said of one comparison: its verdict and its figures, in words."""

from __future__ import annotations

from collections.abc import Iterable

from .chart import signed
from .compare import (
    BETTER,
    FEW,
    OPEN,
    SAME,
    VERDICTS,
    WORSE,
    Comparison,
    percent,
)

SAID = {
    BETTER: ("did better than", "did better than"),
    WORSE: ("did worse than", "did worse than"),
    SAME: ("was within 0.5 % of", "were within 0.5 % of"),
    OPEN: ("was not shown to differ from", "were not shown to differ from"),
    FEW: ("has not all its seeds yet beside", "have not all their seeds yet beside"),
}
"""Verdict to what is said of a mixture, and of its numbers."""
FINER = 0.002
"""The least part of a loss by which rates between those that were tried are worth a word."""


def figures(one: Comparison) -> str:
    """The difference, and what belongs to it."""
    shown = [_difference(one), more(one), _finer(one), _tasks(one)]
    return "; ".join(filter(None, shown))


def fresh(one: Comparison) -> str:
    """What fresh seeds say of a comparison."""
    return f"by {one.wanted} fresh seeds {one.verdict}, {_difference(one)}"


def _difference(one: Comparison) -> str:
    """With the interval once all seeds are there, and why one without 0 shows nothing."""
    if not one.complete:
        return percent(one.middle)
    said = percent(one.middle, one.low, one.high)
    if one.verdict == OPEN and one.corrected is not None and one.low * one.high > 0:
        said += f", p {one.corrected:.2f} after correction"
    return said


def listed(known: Iterable[Comparison]) -> str:
    """Several, by verdict."""
    found = []
    known = list(known)
    for verdict in VERDICTS:
        own = [_shortly(one) for one in known if one.verdict == verdict]
        if own:
            found.append(f"{verdict}: {', '.join(own)}")
    return "; ".join(found)


def _shortly(one: Comparison) -> str:
    """A method, what it is compared with, and the figures."""
    middle, low, high = (signed(100 * value) for value in (one.middle, one.low, one.high))
    shown = [f"{middle} %, {low} to {high}" if one.complete else f"{middle} %"]
    if one.verdict == FEW:
        shown.append(f"{len(one.seeds)} of {one.wanted} seeds so far")
    shown += filter(None, [more(one)])
    return f"`{one.method}` against `{one.against}` ({'; '.join(shown)})"


def more(one: Comparison) -> str:
    """How many more parameters are trained, from 2 % on."""
    percent = round(100 * one.more)
    if abs(percent) < 2:
        return ""
    return f"{abs(percent)} % {'more' if percent > 0 else 'fewer'} parameters"


def _finer(one: Comparison) -> str:
    """The difference at rates between those that were tried, where it is another."""
    if one.finer is None or abs(one.finer - one.middle) < FINER:
        return ""
    return f"some {percent(one.finer)} if both had their ideal learning rate, by their curves"


def _tasks(one: Comparison) -> str:
    """The difference where every task counts the same, with several tasks."""
    return "" if one.of_tasks is None else f"in the mean of the tasks {percent(*one.of_tasks)}"


def capital(text: str) -> str:
    """The text with a large first letter."""
    return text[0].upper() + text[1:]
