"""What the comparisons say, in words: the answer of `docs/study.md`, line by line.

Every verdict is one of a table on that page, so that no sentence can go beyond its figures.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from . import phrases
from .cells import (
    CUT_MIXTURE,
    ESTIMATORS,
    LORA,
    MIXTURE,
    PLAN,
    PRIMARY,
    STRATEGIES,
    Line,
    Setting,
)
from .compare import BETTER, FEW, Comparison, Pair, Runs
from .questions import ALONE, again, tables

DEFAULT = ("alphalora-xmin_peak", MIXTURE)
"""The plan that a user gets who says nothing, and a uniform mixture."""
CONTROL, SHUFFLED = (PLAN, f"{PLAN}-opposite"), (PLAN, f"{PLAN}-shuffled")
"""A plan, and its numbers the other way round, or at random: whether it matters which blocks get
more."""
FIXED = ("fixed-router", MIXTURE)
ASKED: dict[str, Sequence[Pair]] = {
    "Shape": [
        PRIMARY[0],
        (CUT_MIXTURE, LORA),
        (CUT_MIXTURE, "lora-equal-seg4"),
        ("dense", MIXTURE),
        ("share-a", MIXTURE),
        ("router-rank16", MIXTURE),
    ],
    "Allocation": [
        DEFAULT,
        PRIMARY[1],
        CONTROL,
        SHUFFLED,
        (DEFAULT[0], LORA),
        (PLAN, LORA),
        ("alphalora-ks", MIXTURE),
        ("mola-2468", MIXTURE),
        ("mola-8642", MIXTURE),
        ("mola-2468", "mola-8642"),
        ("mola-8642", LORA),
        ("sensitivity", MIXTURE),
    ],
    "Routing": [FIXED, ("shared-router", MIXTURE), ("unbalanced", MIXTURE)],
}
"""Question to the comparisons that a user asks for first."""
FIRST = (PRIMARY[0], DEFAULT, CONTROL, FIXED)
"""Those of them for the README."""
WORDS = {
    LORA: "a LoRA of rank 40",
    MIXTURE: "5 experts of rank 8 in every block",
    PLAN: "AlphaLoRA's numbers by `hill`",
    CONTROL[1]: "the same numbers the other way round",
    SHUFFLED[1]: "the same numbers at random",
    "dense": "all 5 experts active",
    CUT_MIXTURE: "20 quarter experts (`segments: 4`)",
    "share-a": "one A for all experts of a layer",
    "router-rank16": "routers of rank 16",
    "lora-equal-seg4": "a LoRA of as many parameters",
    "alphalora-xmin_peak": "AlphaLoRA's numbers by `xmin_peak`",
    "alphalora-ks": "AlphaLoRA's numbers by `ks`",
    "mola-2468": "MoLA's 2-4-6-8",
    "mola-8642": "MoLA's 8-6-4-2",
    "sensitivity": "numbers by sensitivity",
    "eva": "numbers by EVA",
    FIXED[0]: "routers that stay as they were drawn",
    "shared-router": "one router for all layers with inputs of one width",
    "unbalanced": "no load-balancing loss",
}
"""What methods are called in sentences; the others by their names."""
DEFAULTS: dict[str, Sequence[Pair]] = {
    "`segments: 1`": [("uniform-seg4", MIXTURE), ("uniform-seg8", MIXTURE)],
    "`router_rank: null`": [("router-rank16", MIXTURE)],
    "`share_a: false`": [("share-a", MIXTURE)],
    "`top_k: 2`": [("dense", MIXTURE)],
    "`estimator: xmin_peak`": ESTIMATORS,
    "`aux_loss_coef: 0.001`": [("unbalanced", MIXTURE)],
    "`router_lr_ratio: 1`": [],
}
"""A default of the package, and the comparisons that could change it."""
DIGITS = 5

Done = Mapping[str, Line]


class Verdicts:
    """What was found in one setting, in words."""

    def __init__(self, setting: Setting, done: Done) -> None:
        """Compare.

        Args:
            setting: Where.
            done: Key of a cell to its line.
        """
        self.setting, self.done = setting, done
        found = [one for own in tables(setting, done).values() for one in own.values()]
        self.pairs = _by_pair(one for table in found for one in table)
        self.alone = _by_pair(again(setting, done).get(ALONE, ()))

    def lines(self, wanted: Collection[Pair] = ()) -> dict[str, list[str]]:
        """Question to sentences on its comparisons, those that a user asks for first.

        Args:
            wanted: Of which pairs of `ASKED`; all by default. Only `PRIMARY` are named if they were
                not run.
        """
        return {
            question: [
                self.sentence(pair)
                for pair in pairs
                if pair in (wanted or pairs) and pair in {*self.pairs, *PRIMARY}
            ]
            for question, pairs in ASKED.items()
        }

    def sentence(self, pair: Pair) -> str:
        """A pair and what is told of it."""
        return phrases.capital(f"{self.named(pair)}: {self.told(pair)}.")

    def named(self, pair: Pair) -> str:
        """What a pair is called."""
        return " against ".join(map(self.words, pair))

    def told(self, pair: Pair) -> str:
        """The verdict on a pair, its figures and what fresh seeds say."""
        return phrases.told(self.pairs.get(pair), self.alone.get(pair))

    def defaults(self) -> Iterator[tuple[str, str, str]]:
        """A default, what it was compared with, and whether the study says to change it."""
        for default, pairs in DEFAULTS.items():
            known = [self.pairs[pair] for pair in pairs if pair in self.pairs]
            fresh = [self.alone[pair] for pair in pairs if pair in self.alone]
            decided = {pair: one for pair, one in self.alone.items() if one.complete}
            better = [
                one
                for one in (decided.get((one.method, one.against), one) for one in known)
                if one.verdict == BETTER
            ]
            compared = self.listed(pairs) or "not run yet"
            if fresh:
                compared += f"; by fresh seeds {phrases.listed(fresh)}"
            if not pairs:
                compared = "nothing here varies it"
            yield default, compared, "is to change" if better else "stays"

    def findings(self) -> list[dict[str, Any]]:
        """The plans that have been compared with all seeds, for `alphalora plan`."""
        plans = {MIXTURE: {"strategy": "uniform"}, **STRATEGIES}
        cut = {f"{name}-seg4": options for name, options in plans.items()}
        rows = []
        for method, (strategy, options) in {**_split(plans), **_split(cut)}.items():
            segments, even = (4, CUT_MIXTURE) if method in cut else (1, MIXTURE)
            against = {
                name: found
                for name, other in (("uniform", even), ("lora", LORA))
                if (found := self._finding((method, other)))
            }
            if against:
                named = WORDS.get(method.removesuffix("-seg4"), method)
                named += ", each cut into 4" if method in cut else ""
                own = {"strategy": strategy, "options": options, "segments": segments}
                rows.append({**own, "named": named, "against": against})
        return rows

    def _finding(self, pair: Pair) -> dict[str, Any] | None:
        one = self.pairs.get(pair)
        if one is None or one.verdict == FEW:
            return None
        found = _figures(one) | {"more": round(one.more, DIGITS)}
        fresh = self.alone.get((one.method, one.against))
        return found | ({"fresh": _figures(fresh)} if fresh and fresh.complete else {})

    def words(self, method: str) -> str:
        """What a method is called; a plan with the numbers of its blocks."""
        runs = Runs(self.setting, method, self.done).lines
        blocks = next((line["blocks"] for line in runs.values() if line.get("blocks")), [])
        named = WORDS.get(method, f"`{method}`")
        if len(set(blocks)) < 2 or method in (CONTROL[1], SHUFFLED[1]):
            return named
        default = "the default, " if method == DEFAULT[0] else ""
        return f"{named} ({default}{min(blocks):g} to {max(blocks):g} a block)"

    def listed(self, pairs: Iterable[Pair]) -> str:
        """Pairs by verdict with their differences; those that were not run are left out."""
        return phrases.listed(self.pairs[pair] for pair in pairs if pair in self.pairs)


def _figures(one: Comparison) -> dict[str, Any]:
    found = {"difference": one.middle, "low": one.low, "high": one.high, "p": one.corrected}
    rounded = {name: round(value, DIGITS) for name, value in found.items() if value is not None}
    return {"verdict": one.verdict, **rounded, "seeds": len(one.seeds)}


def _by_pair(found: Iterable[Comparison]) -> dict[Pair, Comparison]:
    return {(one.method, one.against): one for one in found}


def _split(plans: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Method to the name of its strategy and the strategy's options."""
    return {
        method: (own["strategy"], {name: own[name] for name in own if name != "strategy"})
        for method, own in plans.items()
    }
