"""The study's questions, the pairs that each is answered by, and what was found of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from .cells import (
    ACTIVE,
    AGAIN,
    ALLOCATIONS,
    CONTROLS,
    CUT,
    CUT_MIXTURE,
    EQUALS,
    ESTIMATORS,
    FEWER,
    FRESH,
    LORA,
    MIXTURE,
    MIXTURES,
    PLANS,
    PRIMARY,
    ROUTERS,
    SEEDS,
    SHAPES,
    Line,
    Setting,
    groups,
)
from .compare import Comparison, Pair, comparisons

QUESTIONS: dict[str, dict[str, Sequence[Pair]]] = {
    "Shape": {
        "Against a plain LoRA of rank 40": [(name, LORA) for name in SHAPES if name != LORA],
        "Against a uniform mixture": [(name, MIXTURE) for name in MIXTURES],
        "Against a plain LoRA of as many parameters": EQUALS,
        "Against a plain LoRA of as much active rank": ACTIVE,
    },
    "Allocation": {
        "Against the same number in every block": [
            *((name, MIXTURE) for name in ALLOCATIONS),
            *((name, CUT_MIXTURE) for name in CUT),
        ],
        "Against their controls": CONTROLS,
        "Estimators": ESTIMATORS,
        "Plans against a plain LoRA of rank 40": [(name, LORA) for name in (*PLANS, *CUT)],
        "With 2 experts a block": FEWER,
    },
    "Routing": {
        "Against routers that learn": [(name, MIXTURE) for name in ROUTERS],
        "Their mixtures against a plain LoRA of rank 40": [(name, LORA) for name in ROUTERS],
    },
}
"""Question to the titles of its tables and their pairs; no two are of the same methods."""

ALONE = f"Seeds {FRESH[0]} to {FRESH[-1]} alone"
TOGETHER = f"Seeds {SEEDS[0]} to {FRESH[-1]}, with those looked at before, so without a verdict"


def tables(setting: Setting, done: Mapping[str, Line]) -> dict[str, dict[str, list[Comparison]]]:
    """Question to title to the comparisons of a table; tables without any are left out.

    The p values of a question are corrected for all its pairs, those of `PRIMARY` for these two.
    """
    primary = comparisons(setting, PRIMARY, done)
    found: dict[str, dict[str, list[Comparison]]] = {}
    for question, asked in QUESTIONS.items():
        own = planned(setting, question)
        known = comparisons(setting, [pair for pair in own if pair not in PRIMARY], done) | primary
        for title, pairs in asked.items():
            if rows := [known[pair] for pair in pairs if pair in known]:
                found.setdefault(question, {})[title] = rows
    return found


def planned(setting: Setting, question: str) -> list[Pair]:
    """The pairs of a question whose methods are to be run in a setting."""
    methods = {method for group in groups(setting) for method in group}
    pairs = [pair for own in QUESTIONS[question].values() for pair in own]
    return [pair for pair in pairs if methods.issuperset(pair)]


def again(setting: Setting, done: Mapping[str, Line]) -> dict[str, list[Comparison]]:
    """The pairs that fresh seeds answer once more: by these alone, and by all that were run.

    The p values of the fresh ones are corrected for these pairs; what all seeds say together has
    none, since some of them had been looked at before the others were asked for.
    """
    alone = comparisons(setting, AGAIN, done, FRESH)
    if not alone:
        return {}
    together = comparisons(setting, list(alone), done, (*SEEDS, *FRESH))
    return {
        ALONE: list(alone.values()),
        TOGETHER: [replace(one, p=None, corrected=None) for one in together.values()],
    }
