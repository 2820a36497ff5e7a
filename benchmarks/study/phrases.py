"""What is said of one comparison: its verdict and its figures, in words."""

from __future__ import annotations

from collections.abc import Iterable

from .chart import signed
from .compare import FEW, OPEN, VERDICTS, Comparison, percent
from .stats import LEVEL

FINER = 0.002
"""The least part of a loss by which rates between those that were tried are worth a word."""


def told(one: Comparison | None, fresh: Comparison | None = None) -> str:
    """Its verdict and figures, and what fresh seeds say of it."""
    if one is None:
        return "not run yet"
    if not one.complete:
        return _seeds(one)
    shown = [_judged(one), more(one), _finer(one), _tasks(one)]
    if fresh is not None and fresh.complete:
        shown.append(f"by {fresh.wanted} fresh seeds {_judged(fresh)}")
    return "; ".join(filter(None, shown))


def _judged(one: Comparison) -> str:
    """The verdict and the difference; what an undecided one lacks."""
    said = percent(one.middle, one.low, one.high)
    if one.verdict != OPEN:
        return f"{one.verdict}, {said}"
    apart = round(100 * one.low, 2) * round(100 * one.high, 2) > 0
    if one.corrected is not None and (apart or one.corrected < LEVEL):
        said += f", p {one.p:.3f}, after correction {one.corrected:.3f}"
    return f"{OPEN} ({one.needed} seeds needed), {said}"


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
        shown.append(_seeds(one))
    shown += filter(None, [more(one)])
    return f"`{one.method}` against `{one.against}` ({'; '.join(shown)})"


def _seeds(one: Comparison) -> str:
    return f"{len(one.seeds)} of {one.wanted} seeds so far"


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
    return f"rates between those that were tried might make it {percent(one.finer)} (a guess)"


def _tasks(one: Comparison) -> str:
    """The difference where every task counts the same, with several tasks."""
    return "" if one.of_tasks is None else f"{percent(*one.of_tasks)} if all tasks count the same"


def capital(text: str) -> str:
    """The text with a large first letter."""
    return text[0].upper() + text[1:]
