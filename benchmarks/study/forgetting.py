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


def tables(setting: Setting, methods: Sequence[str], done: Done) -> Iterator[str]:
    """The rise of other losses over the base model's, and beside those of a LoRA and a mixture."""
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
            yield f"Forgetting, {said}:"
            yield table_of(["method", "seeds", *sets], body)


def against_lora(setting: Setting, done: Done) -> list[str]:
    """What a LoRA forgets, and a mixture against it."""
    rises, said = apart(setting, LORA, None, done), beside(setting, done)
    if not rises or not said:
        return []
    own = ", ".join(f"{name} {signed(fmean(values))}" for name, values in rises.items())
    return [
        f"Training on {setting.data} with the LoRA adds to the losses on other sets, in nats: "
        f"{own}. With the mixture, against the LoRA: {said}."
    ]


def beside(setting: Setting, done: Done) -> str:
    """A mixture against a LoRA, set by set, with their rates; empty without all seeds."""
    found = apart(setting, MIXTURE, LORA, done)
    if not found or any(len(values) < len(SEEDS) for values in found.values()):
        return ""
    sets = ", ".join(f"{name} {_interval(values)}" for name, values in found.items())
    own, theirs = (Runs(setting, method, done).rate for method in (MIXTURE, LORA))
    return f"{sets} (rates {own:g} and {theirs:g})"


def notes(setting: Setting, done: Done) -> Iterator[str]:
    """How many intervals exclude 0, and what the learning rate does."""
    yield from counted(setting, done)
    yield from _with_the_rate(setting, done)


def counted(setting: Setting, done: Done) -> Iterator[str]:
    """How many intervals exclude 0, of all methods against a LoRA."""
    known = [
        values
        for method in NAMED
        if method != LORA
        for values in apart(setting, method, LORA, done).values()
        if len(values) == len(SEEDS)
    ]
    shown = [ends for values in known if (ends := mean_interval(values)) and ends[0] * ends[1] > 0]
    if known:
        yield (
            f"Intervals without 0 among the {len(known)} differences to `{LORA}` that have all "
            f"seeds: {len(shown)} (by chance {LEVEL * len(known):.1f}, were they independent)."
        )


def _with_the_rate(setting: Setting, done: Done) -> Iterator[str]:
    """How one set's loss changes with a LoRA's learning rate, at seed 0."""
    rates = losses(setting, LORA, done)
    if setting.untrained().key in done and len(rates) > 1:
        before = done[setting.untrained().key]["others"]
        name = next(iter(before))
        ends = (min(rates), max(rates))
        lines = [done[setting.cell(LORA, rate, SEEDS[0]).key] for rate in ends]
        low, high = (line["others"][name] - before[name] for line in lines)
        yield (
            f"Forgetting hangs on the learning rate (`{LORA}`, seed 0, {name}: {signed(low)} at "
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
