"""Forgetting: what training on one set does to the losses on the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean, stdev

from .cells import LORA, MIXTURE, NAMED, SEEDS, Setting, losses
from .chart import signed, table_of
from .compare import Runs
from .results import Done
from .stats import LEVEL, mean_interval


def apart(setting: Setting, method: str, against: str | None, done: Done) -> dict[str, list[float]]:
    """Differences of the losses on other sets, seed by seed.

    Args:
        setting: Where.
        method: At the best rate of its curve.
        against: Another method, over the seeds that both have; None for the base model.
        done: Key of a cell to its line.

    Returns:
        Name of a set to differences, in nats a label; empty where there are none.
    """
    own = Runs(setting, method, done).lines
    if against is None:
        before = done.get(setting.untrained().key)
        theirs = {} if before is None else dict.fromkeys(own, before)
    else:
        theirs = Runs(setting, against, done).lines
    seeds = [seed for seed in own if seed in theirs]
    if not seeds:
        return {}
    return {
        name: [own[seed]["others"][name] - theirs[seed]["others"][name] for seed in seeds]
        for name in own[seeds[0]]["others"]
    }


def tables(setting: Setting, methods: Sequence[str], done: Done) -> str:
    """The rise of other losses over the base model's, and beside those of a LoRA and a mixture."""
    parts = []
    for against, said in (
        (None, "the rise of other losses (mean and deviation over seeds)"),
        *(
            (other, f"the same losses against those of `{other}` (mean and 95 % interval)")
            for other in (LORA, MIXTURE)
        ),
    ):
        known = {m: apart(setting, m, against, done) for m in methods if m != against}
        rows = {method: found for method, found in known.items() if found}
        if rows:
            shown = _spread if against is None else _interval
            sets = list(next(iter(rows.values())))
            body = [
                [f"`{method}`", str(len(found[sets[0]])), *(shown(found[name]) for name in sets)]
                for method, found in rows.items()
            ]
            parts += [f"Forgetting, {said}:", table_of(["method", "seeds", *sets], body)]
    return "\n\n".join(parts)


def told(setting: Setting, done: Done) -> list[str]:
    """What a LoRA forgets, what others do against it, and what the learning rate does."""
    rises = apart(setting, LORA, None, done)
    if not rises:
        return []
    own = ", ".join(f"{name} {signed(fmean(found))}" for name, found in rises.items())
    return [
        f"What training adds to the other losses (nats a label; more is more forgetting): `{LORA}` "
        f"{own}.",
        *_against(setting, done),
        *_with_the_rate(setting, done),
    ]


def _against(setting: Setting, done: Done) -> Iterator[str]:
    """A mixture against a LoRA, and how many intervals of all methods exclude 0."""
    known = {
        method: found
        for method in NAMED
        if method != LORA
        and (found := apart(setting, method, LORA, done))
        and all(len(values) == len(SEEDS) for values in found.values())
    }
    if MIXTURE in known:
        main = (f"{name} {_interval(values)}" for name, values in known[MIXTURE].items())
        yield f"`{MIXTURE}` against that LoRA: {', '.join(main)}."
    shown = [
        f"`{method}` {name} {signed(fmean(values))}"
        for method, found in known.items()
        for name, values in found.items()
        if (ends := mean_interval(values)) and ends[0] * ends[1] > 0
    ]
    if known:
        number = sum(map(len, known.values()))
        yield (
            f"Of the {number} differences to it that have all seeds, {len(shown)} have an interval "
            f"without 0 ({LEVEL * number:.0f} would by chance, were they independent)"
            + (f": {', '.join(shown)}." if shown else ".")
        )


def _with_the_rate(setting: Setting, done: Done) -> Iterator[str]:
    """How one set's loss changes with a LoRA's learning rate, at seed 0."""
    before = done[setting.untrained().key]["others"]
    rates = losses(setting, LORA, done)
    name = next(iter(before))
    if len(rates) > 1:
        ends = (min(rates), max(rates))
        lines = [done[setting.cell(LORA, rate, SEEDS[0]).key] for rate in ends]
        low, high = (line["others"][name] - before[name] for line in lines)
        yield (
            f"It hangs on the learning rate (`{LORA}`, seed 0, {name}: {signed(low)} at "
            f"{ends[0]:g}, {signed(high)} at {ends[1]:g}), so methods at other rates are hard to "
            "compare."
        )


def _spread(values: Sequence[float]) -> str:
    """Mean, and standard deviation where there are several."""
    around = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):+.3f}{around}"


def _interval(values: Sequence[float]) -> str:
    """Mean, and the interval by Student's t where there are several."""
    ends = mean_interval(values)
    around = f" ({signed(ends[0])} to {signed(ends[1])})" if ends else ""
    return f"{signed(fmean(values))}{around}"
