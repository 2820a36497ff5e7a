"""What the comparisons say, in words: the answer of `docs/study.md`, line by line.

Every verdict is one of a table on that page, so that no sentence can go beyond its figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .cells import (
    ACTIVE,
    CONTROLS,
    CUT,
    CUT_MIXTURE,
    EQUALS,
    ESTIMATORS,
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
    TITLES,
    Line,
    Setting,
)
from .compare import (
    BETTER,
    FEW,
    MINIMUM,
    OPEN,
    SAME,
    VERDICTS,
    WORSE,
    Comparison,
    Pair,
    means,
    tables,
)

SAID = {
    BETTER: ("did better than", "did better than"),
    WORSE: ("did worse than", "did worse than"),
    SAME: ("did as well as", "did as well as"),
    OPEN: ("was not shown to differ from", "were not shown to differ from"),
    FEW: ("has too few runs to be compared with", "have too few runs to be compared with"),
}
"""Verdict to what is said of a mixture, and of its numbers."""
WORDS = {
    LORA: "a LoRA of rank 40",
    MIXTURE: "5 experts of rank 8 in every block",
    PLAN: "AlphaLoRA's numbers by `hill`",
    "alphalora-xmin_peak": "AlphaLoRA's numbers by `xmin_peak`",
    "alphalora-ks": "AlphaLoRA's numbers by `ks`",
    "mola-2468": "MoLA's 2-4-6-8",
    "mola-8642": "MoLA's 8-6-4-2",
    "sensitivity": "numbers by sensitivity",
    "eva": "numbers by EVA",
}
"""What methods are called in sentences; the others by their names."""
NOT_RUN = "not run yet"
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
        self.pairs = {(one.method, one.against): one for table in found for one in table}

    def headline(self) -> str:
        """The answer in one sentence: a mixture against a LoRA, a plan against a mixture."""
        shape, plan = (self.pairs[pair].verdict if pair in self.pairs else FEW for pair in PRIMARY)
        where = f"{TITLES[self.setting.base]} and {self.setting.data}"
        return (
            f"On {where} a mixture of 5 experts of rank 8, top-2, {SAID[shape][0]} a LoRA of rank "
            f"40, and AlphaLoRA's uneven numbers (by `hill`) {SAID[plan][1]} even ones."
        )

    def main(self) -> list[str]:
        """The comparisons that the headline rests on, with their figures."""
        return [self.sentence(pair) for pair in PRIMARY]

    def shape(self) -> list[str]:
        """Mixtures and other LoRAs."""
        others = [(name, LORA) for name in SHAPES if name not in (MIXTURE, LORA)]
        return [
            self.sentence(PRIMARY[0]),
            f"Others against `{LORA}`: {self.listed(others)}.",
            f"Mixtures against a LoRA of as many parameters: {self.listed(EQUALS)}; "
            f"of as much active rank: {self.listed(ACTIVE)}.",
            f"Against `{MIXTURE}`: {self.listed((name, MIXTURE) for name in MIXTURES)}.",
        ]

    def allocation(self) -> list[str]:
        """Plans against the same number everywhere, and against their controls."""
        cut = self.listed((name, CUT_MIXTURE) for name in CUT)
        return [
            self.sentence(PRIMARY[1]),
            f"Other plans against `{MIXTURE}`: "
            f"{self.listed((name, MIXTURE) for name in PLANS if name != PLAN)}.",
            f"Plans against their controls: {self.listed(CONTROLS, both=True)}.",
            f"With every expert cut into 4, against `{CUT_MIXTURE}`: {cut}.",
        ]

    def routing(self) -> list[str]:
        """Routers that do not learn, are shared or not balanced; what they tell of tasks."""
        found = self.listed((name, MIXTURE) for name in ROUTERS)
        return [f"Against `{MIXTURE}`, whose routers learn: {found}."]

    def short(self) -> str:
        """The main comparisons of a setting that has few; "" if none was run."""
        others = [(name, MIXTURE) for name in SHORT if name not in (MIXTURE, LORA)]
        known = [PRIMARY[0], *others]
        return self.listed(known, both=True) if set(known) & set(self.pairs) else ""

    def forgetting(self) -> list[str]:
        """How much the losses on the other sets rose over the base model's, set by set."""
        before = self.done.get(self.setting.untrained().key)
        methods = (LORA, MIXTURE, CUT_MIXTURE, PLAN)
        found = means(self.setting, methods, self.done, lambda line: line["others"])
        if before is None or not found:
            return ["Not measured yet."]
        changes = []
        for name, loss in before["others"].items():
            said = (f"{one[name] - loss:+.2f} (`{method}`)" for method, one in found.items())
            changes.append(f"{name} {', '.join(said)}")
        return [f"The loss on other sets changed by: {'; '.join(changes)}."]

    def defaults(self) -> Iterator[tuple[str, str, str]]:
        """A default, what it was compared with, and whether the study says to change it."""
        for default, pairs in DEFAULTS.items():
            known = [self.pairs[pair] for pair in pairs if pair in self.pairs]
            better = [one for one in known if one.verdict == BETTER]
            compared = self.listed(pairs, both=True) if pairs else "nothing here varies it"
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
        found = {"difference": one.middle, "low": one.low, "high": one.high}
        rounded = {name: round(value, DIGITS) for name, value in found.items()}
        return {"verdict": one.verdict, **rounded, "seeds": len(one.seeds)}

    def sentence(self, pair: Pair) -> str:
        """One pair with its interval, and the seeds that it takes."""
        one = self.pairs.get(pair)
        method, against = (WORDS.get(name, f"`{name}`") for name in pair)
        if one is None:
            return f"{_capital(method)} and {against} have not been run with the same seeds yet."
        seeds = f"{len(one.seeds)} seed{'s' * (len(one.seeds) > 1)}"
        takes = ""
        if one.verdict in (OPEN, FEW) and one.needed not in ("", *map(str, range(len(SEEDS) + 1))):
            takes = f"; to find a true difference of {100 * MINIMUM:g} % takes {one.needed} seeds"
        return (
            f"{_capital(method)} against {against}: held-out loss {amount(one.middle)} "
            f"(95 %: {amount(one.low)} to {amount(one.high)}; {seeds}): {one.verdict}{takes}."
        )

    def listed(self, pairs: Iterable[Pair], both: bool = False) -> str:
        """Pairs by verdict with their differences; those that were not run are left out."""
        known = [self.pairs[pair] for pair in pairs if pair in self.pairs]
        return "; ".join(_by_verdict(known, both)) or NOT_RUN


def _split(plans: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Method to the name of its strategy and the strategy's options."""
    return {
        method: (own["strategy"], {name: own[name] for name in own if name != "strategy"})
        for method, own in plans.items()
    }


def _by_verdict(known: Sequence[Comparison], both: bool) -> Iterator[str]:
    for verdict in VERDICTS:
        own = [
            f"`{one.method}`"
            + f" against `{one.against}`" * both
            + f" ({100 * one.middle:+.2f} %, "
            f"{100 * one.low:+.2f} to {100 * one.high:+.2f})"
            for one in known
            if one.verdict == verdict
        ]
        if own:
            yield f"{verdict}: {', '.join(own)}"


def amount(part: float) -> str:
    """A difference of loss in words: `0.23 % lower`."""
    return f"{100 * abs(part):.2f} % {'lower' if part < 0 else 'higher'}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
