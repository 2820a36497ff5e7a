"""What the comparisons say, in words: the answer of `docs/study.md`, line by line.

Every verdict is one of a table on that page, so that no sentence can go beyond its figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from . import phrases
from .cells import (
    ACTIVE,
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
    PLAN,
    PLANS,
    PRIMARY,
    ROUTERS,
    SEEDS,
    SHAPES,
    SHORT,
    STRATEGIES,
    Line,
    Setting,
)
from .compare import BETTER, FEW, Comparison, Pair, Runs, percent
from .phrases import SAID
from .questions import ALONE, TOGETHER, again, tables

CUT_PAIR = (CUT_MIXTURE, LORA)
FINE = (CUT_MIXTURE, "lora-equal-seg4")
"""Many small experts, and a LoRA of as many parameters."""
DEFAULT = ("alphalora-xmin_peak", MIXTURE)
"""The plan that a user gets who says nothing, and a uniform mixture."""
CONTROL = (PLAN, f"{PLAN}-opposite")
"""A plan, and its numbers the other way round: whether it matters which blocks get more."""
EVEN = "5 experts everywhere"
WORDS = {
    LORA: "a LoRA of rank 40",
    MIXTURE: "5 experts of rank 8 in every block",
    PLAN: "AlphaLoRA's numbers by `hill`",
    CONTROL[1]: "the same numbers the other way round",
    CUT_MIXTURE: "20 quarter experts (`segments: 4`)",
    FINE[1]: "a LoRA of as many parameters",
    "alphalora-xmin_peak": "AlphaLoRA's numbers by `xmin_peak`",
    "alphalora-ks": "AlphaLoRA's numbers by `ks`",
    "mola-2468": "MoLA's 2-4-6-8",
    "mola-8642": "MoLA's 8-6-4-2",
    "sensitivity": "numbers by sensitivity",
    "eva": "numbers by EVA",
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
        seen = again(setting, done)
        self.alone, self.together = (_by_pair(seen.get(title, ())) for title in (ALONE, TOGETHER))

    def main(self) -> list[str]:
        """The comparisons that a user asks for first, a sentence each."""
        mixture = "A mixture of 5 experts of rank 8, top-2,"
        found = [self.clause(PRIMARY[0], subject=mixture, many=0)]
        if CUT_PAIR in self.pairs:
            found.append(self.clause(CUT_PAIR, other="that LoRA"))
        if DEFAULT in self.pairs:
            found.append(self.clause(DEFAULT, other=EVEN))
        found.append(self.clause(PRIMARY[1], other=EVEN))
        if CONTROL in self.pairs:
            found.append(self.clause(CONTROL, subject="They"))
        return found

    def clause(self, pair: Pair, *, subject: str = "", other: str = "", many: int = 1) -> str:
        """One pair as a sentence, with its figures and what fresh seeds say.

        Args:
            pair: Which.
            subject: What the method is called, if not by its words.
            other: What the other one is called, if not by its words.
            many: 1 if the subject is a plural, else 0.
        """
        one = self.pairs.get(pair)
        method, against = (self.words(name) for name in pair)
        verdict = FEW if one is None else one.verdict
        said = f"{subject or method} {SAID[verdict][many]} {other or against}"
        if one is not None and one.complete:
            new = self.alone.get(pair)
            fresh = "" if new is None or not new.complete else phrases.fresh(new)
            said += f": {'; '.join(filter(None, [phrases.figures(one), fresh]))}"
        return phrases.capital(f"{said}.")

    def shape(self) -> list[str]:
        """Mixtures and other LoRAs."""
        others = [(name, LORA) for name in SHAPES if name not in (MIXTURE, LORA, CUT_MIXTURE)]
        main = self.pairs.get(PRIMARY[0])
        rates = ""
        if main is not None:
            rates = f"mixture {main.runs.rate:g}, LoRA {main.theirs.rate:g}"
        equal = [pair for pair in EQUALS if pair != FINE]
        return [
            self.sentence(PRIMARY[0]),
            *([f"Best learning rates: {rates}."] if rates else []),
            *(self.sentence(pair) for pair in (CUT_PAIR, FINE) if pair in self.pairs),
            *self.again(),
            *self.told(f"Other shapes against `{LORA}`", others),
            *self.told("Other mixtures against a LoRA of as many parameters", equal, both=True),
            *self.told("Mixtures against a LoRA of as much active rank", ACTIVE, both=True),
            *self.told(f"Against `{MIXTURE}`", [(name, MIXTURE) for name in MIXTURES]),
        ]

    def allocation(self) -> list[str]:
        """Plans against the same number everywhere, and against their controls."""
        others = [(name, MIXTURE) for name in PLANS if (name, MIXTURE) not in (PRIMARY[1], DEFAULT)]
        controls = [pair for pair in CONTROLS if pair != CONTROL]
        return [
            self.sentence(PRIMARY[1]),
            *(self.sentence(pair) for pair in (CONTROL, DEFAULT) if pair in self.pairs),
            *self.told(f"Other plans against `{MIXTURE}`", others),
            *self.told("Plans against other controls", controls, both=True),
            *self.told("Estimators", ESTIMATORS, both=True),
            *self.told("With 2 experts a block", FEWER, both=True),
            *self.told(f"Cut into 4, against `{CUT_MIXTURE}`", [(n, CUT_MIXTURE) for n in CUT]),
        ]

    def routing(self) -> list[str]:
        """Routers that do not learn, are shared or not balanced."""
        learned = [(name, MIXTURE) for name in ROUTERS]
        return [
            *self.told(f"Against `{MIXTURE}`, whose routers learn", learned, whole=True),
            *self.told(f"Against `{LORA}`", [(name, LORA) for name in ROUTERS], whole=True),
        ]

    def short(self) -> str:
        """The main comparisons of a setting that has few; "" if none was run."""
        others = [(name, MIXTURE) for name in SHORT if name not in (MIXTURE, LORA)]
        known = [PRIMARY[0], CUT_PAIR, *others]
        return self.listed(known, both=True, whole=True) if set(known) & set(self.pairs) else ""

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
            compared = self.listed(pairs, both=True, whole=True) or "not run yet"
            if fresh:
                compared += f"; by fresh seeds {phrases.listed(fresh, both=True, whole=True)}"
            if not pairs:
                compared = "nothing here varies it"
            yield default, compared, "is to change" if better else "stays"

    def again(self) -> list[str]:
        """What fresh seeds say of comparisons whose first seeds had been looked at."""
        if not self.alone:
            return []
        shown = phrases.listed(self.alone.values(), both=True, whole=True)
        all_of = [
            f"`{one.method}` against `{one.against}` {percent(one.middle, one.low, one.high)}"
            for one in self.together.values()
            if self.alone[one.method, one.against].complete
        ]
        number = len(SEEDS) + len(FRESH)
        return [
            f"By seeds {FRESH[0]} to {FRESH[-1]} alone, named before they were run: {shown}."
            + (f" By all {number} seeds, no verdict: {', '.join(all_of)}." if all_of else "")
        ]

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
        found = {"difference": one.middle, "low": one.low, "high": one.high, "more": one.more}
        rounded = {name: round(value, DIGITS) for name, value in found.items()}
        return {"verdict": one.verdict, **rounded, "seeds": len(one.seeds)}

    def sentence(self, pair: Pair) -> str:
        """One pair, its verdict first, with its figures."""
        one = self.pairs.get(pair)
        method, against = (self.words(name) for name in pair)
        if one is None:
            return f"Not run with the same seeds yet: {method} and {against}."
        verdict = phrases.capital(phrases.judged(one))
        return f"{verdict}: {method} against {against}: {phrases.figures(one)}."

    def words(self, method: str) -> str:
        """What a method is called; a plan with the numbers of its blocks."""
        runs = Runs(self.setting, method, self.done).lines
        blocks = next((line["blocks"] for line in runs.values() if line.get("blocks")), [])
        named = WORDS.get(method, f"`{method}`")
        if len(set(blocks)) < 2 or method == CONTROL[1]:
            return named
        default = "the default, " if method == DEFAULT[0] else ""
        return f"{named} ({default}{min(blocks):g} to {max(blocks):g} a block)"

    def told(
        self, what: str, pairs: Sequence[Pair], *, both: bool = False, whole: bool = False
    ) -> Iterator[str]:
        """A sentence on several pairs, see `listed`; none where nothing was run."""
        if said := self.listed(pairs, both=both, whole=whole):
            yield f"{what}: {said}."

    def listed(self, pairs: Iterable[Pair], *, both: bool = False, whole: bool = False) -> str:
        """Pairs by verdict with their differences; those that were not run are left out.

        Args:
            pairs: Which.
            both: Whether to name what a method is compared with.
            whole: Whether to give the intervals, too.
        """
        known = [self.pairs[pair] for pair in pairs if pair in self.pairs]
        return phrases.listed(known, both, whole)


def _by_pair(found: Iterable[Comparison]) -> dict[Pair, Comparison]:
    return {(one.method, one.against): one for one in found}


def _split(plans: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Method to the name of its strategy and the strategy's options."""
    return {
        method: (own["strategy"], {name: own[name] for name in own if name != "strategy"})
        for method, own in plans.items()
    }
