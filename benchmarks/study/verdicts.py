"""What the comparisons say, in words: the answer of `docs/study.md`, line by line.

Every word of a verdict follows from figures of the page's tables by one rule, so that no sentence
can go beyond them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .cells import CONTROLS, PLANS, ROUTERS, SHAPES, SHORT, Line, Setting
from .compare import (
    BETTER,
    FEW,
    MINIMUM,
    OPEN,
    SAME,
    VERDICTS,
    WORSE,
    Comparison,
    means,
    tables,
)

LORA, MIXTURE, PLAN = "lora-r40", "uniform", "alphalora-hill"
"""The methods that stand for a plain LoRA, a mixture and a plan."""
WORDS = {
    LORA: "a LoRA of rank 40",
    MIXTURE: "5 experts of rank 8, top-2,",
    PLAN: "AlphaLoRA's numbers (`hill`)",
}
ACTIVE = "lora-r16"
"""The plain LoRA with as many ranks as a mixture has active."""

STRATEGIES = {
    "alphalora": PLAN,
    "mola": "mola-2468",
    "sensitivity": "sensitivity",
    "eva": "eva",
}
"""A strategy of the package, and the method that stands for it."""
DIGITS = 5

SAID = {
    BETTER: ("did better than", "did better than"),
    WORSE: ("did worse than", "did worse than"),
    SAME: ("did as well as", "did as well as"),
    OPEN: ("was not shown to differ from", "were not shown to differ from"),
    FEW: ("has too few runs to be compared with", "have too few runs to be compared with"),
}
"""Verdict to what is said of a mixture, and of its numbers."""

NOT_RUN = "not run yet"

Pair = tuple[str, str]
Done = Mapping[str, Line]


class Verdicts:
    """What was found in one setting, in words."""

    def __init__(self, setting: Setting, methods: Sequence[str], done: Done) -> None:
        """Compare.

        Args:
            setting: Where.
            methods: What was run there.
            done: Key of a cell to its line.
        """
        self.setting, self.done = setting, done
        found = tables(setting, methods, done).values()
        self.pairs = {(one.method, one.against): one for table in found for one in table}

    def headline(self) -> str:
        """The answer in one sentence: a mixture against a LoRA, a plan against a mixture."""
        shape, plan = (
            self.pairs[pair].verdict if pair in self.pairs else FEW
            for pair in ((MIXTURE, LORA), (PLAN, MIXTURE))
        )
        return (
            f"A mixture of LoRA experts {SAID[shape][0]} a plain LoRA of the same total rank, and "
            f"AlphaLoRA's uneven numbers {SAID[plan][1]} even ones."
        )

    def main(self) -> tuple[str, str]:
        """The comparisons that the headline rests on, with their figures."""
        even = {**WORDS, MIXTURE: "5 in every block"}
        return self.sentence((MIXTURE, LORA), WORDS), self.sentence((PLAN, MIXTURE), even)

    def shape(self) -> str:
        """Mixtures and other LoRAs against the plain one."""
        others = self.listed((name, LORA) for name in SHAPES if name != MIXTURE)
        active = self.sentence((MIXTURE, ACTIVE))
        return f"{self.main()[0]} Others against `{LORA}`: {others}. {active}"

    def allocation(self) -> str:
        """Plans against the same number everywhere, and against their controls."""
        others = self.listed((name, MIXTURE) for name in PLANS if name != PLAN)
        controls = self.listed(CONTROLS, both=True)
        return (
            f"{self.main()[1]} Other plans against `{MIXTURE}`: {others}. "
            f"Plans against their controls: {controls}."
        )

    def routing(self) -> str:
        """Routers that do not learn, or not each its own, against those that do."""
        found = self.listed((name, MIXTURE) for name in ROUTERS if name != MIXTURE)
        return f"Against `{MIXTURE}`, whose routers learn: {found}."

    def short(self) -> str:
        """The main comparisons of a setting that has few."""
        pairs = [
            (MIXTURE, LORA),
            *((name, MIXTURE) for name in SHORT if name not in (MIXTURE, LORA)),
        ]
        return self.listed(pairs, both=True)

    def forgetting(self) -> str:
        """How much the losses on the other sets rose over the base model's, set by set."""
        before = self.done.get(self.setting.untrained().key)
        named = (LORA, MIXTURE, PLAN)
        found = means(self.setting, named, self.done, lambda line: line["others"])
        if before is None or not found:
            return "Not measured yet."
        rises = []
        for name, loss in before["others"].items():
            said = (f"{one[name] - loss:+.2f} (`{method}`)" for method, one in found.items())
            rises.append(f"{name} {', '.join(said)}")
        return f"The loss on other sets rose by: {'; '.join(rises)}."

    def findings(self) -> dict[str, Any]:
        """The comparisons that have enough seeds and that say something of a user's plan."""
        plans = {name: self._finding((method, MIXTURE)) for name, method in STRATEGIES.items()}
        return {
            "even": self._finding((MIXTURE, LORA)),
            "uneven": {name: found for name, found in plans.items() if found},
        }

    def _finding(self, pair: Pair) -> dict[str, Any] | None:
        one = self.pairs.get(pair)
        if one is None or one.verdict == FEW:
            return None
        found = {"difference": one.middle, "low": one.low, "high": one.high}
        rounded = {name: round(value, DIGITS) for name, value in found.items()}
        return {"verdict": one.verdict, **rounded, "seeds": len(one.seeds)}

    def sentence(self, pair: Pair, words: Mapping[str, str] | None = None) -> str:
        """One pair with its interval, and the seeds that it takes.

        Args:
            pair: Of methods.
            words: What to call them; their own names if None.
        """
        one = self.pairs.get(pair)
        method, against = ((words or {}).get(name, f"`{name}`") for name in pair)
        if one is None:
            return f"{method} and {against} have not been run with the same seeds yet."
        seeds = f"{len(one.seeds)} seed{'s' * (len(one.seeds) > 1)}"
        takes = ""
        if one.verdict in (OPEN, FEW) and one.needed:
            takes = f"; {100 * MINIMUM:g} % would take {one.needed}"
        return (
            f"{method} against {against}: {_percent(one)} "
            f"({100 * one.low:+.2f} to {100 * one.high:+.2f} %, {seeds}), {one.verdict}{takes}."
        )

    def listed(self, pairs: Iterable[Pair], both: bool = False) -> str:
        """Pairs by verdict with their differences; those that were not run are left out."""
        known = [self.pairs[pair] for pair in pairs if pair in self.pairs]
        return "; ".join(_by_verdict(known, both)) or NOT_RUN


def _by_verdict(known: Sequence[Comparison], both: bool) -> Iterator[str]:
    for verdict in VERDICTS:
        own = [
            f"`{one.method}`" + f" against `{one.against}`" * both + f" ({_percent(one)})"
            for one in known
            if one.verdict == verdict
        ]
        if own:
            yield f"{verdict}: {', '.join(own)}"


def _percent(one: Comparison) -> str:
    return f"{100 * one.middle:+.2f} %"
