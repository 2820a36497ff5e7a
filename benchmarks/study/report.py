"""What the results say: the generated parts of `docs/study.md`, and its pictures.

Takes nothing but the lines of results, so that a test can compare the page with them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from . import chart, conclusions, forgetting, results
from .cells import (
    LORA,
    NAMED,
    PILOT,
    RATES,
    SEEDS,
    SMALL,
    UNTRAINED,
    VARIANCE_OF,
    Line,
    Setting,
    best_rate,
    curve,
    losses,
)
from .chart import table_of
from .compare import COMPARED, MINIMUM, Comparison, Runs, means, percent
from .devices import DEVICES
from .questions import TOGETHER, again, tables
from .results import Done, is_in, settings
from .stats import LEVEL, POWER, pairs_for, visible

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
NOTHING = "No cell of it has been run yet."
DIGITS = 4


def pilot(done: Done) -> str:
    """Curves of the pilot, the variance over seeds, and what the study can see."""
    parts = []
    for device in DEVICES:
        setting = Setting(device=device)
        if losses(setting, VARIANCE_OF, done):
            parts += [f"### {setting.named}", *_pilot(setting, done)]
    return "\n\n".join(parts) or NOTHING


def _pilot(setting: Setting, done: Done) -> Iterator[str]:
    yield f"![Held-out loss over the learning rate](pictures/{_picture(setting, 'pilot')})"
    rate = best_rate(setting, VARIANCE_OF, done)
    if rate is None:
        yield f"The curve of `{VARIANCE_OF}` is not complete, so its variance is not known."
        return
    runs = Runs(setting, VARIANCE_OF, done)
    seeds = runs.losses
    rows = [[str(seed), f"{loss:.{DIGITS + 1}f}"] for seed, loss in seeds.items()]
    yield f"`{VARIANCE_OF}` at {rate:g}, seed by seed:"
    yield table_of(["seed", "held-out loss"], rows)
    if len(seeds) < len(SEEDS):
        yield f"{len(seeds)} of {len(SEEDS)} seeds have been run."
        return
    yield _power(list(seeds.values()))


def _power(found: Sequence[float]) -> str:
    """What the paired comparison can see, from the variance of one method."""
    mean, deviation = fmean(found), stdev(found)
    pair = 2**0.5 * deviation
    needed = pairs_for(pair, MINIMUM * mean)
    rows = [
        [
            str(pairs),
            f"{visible(pair, pairs):.{DIGITS}f}",
            f"{100 * visible(pair, pairs) / mean:.2f} %",
        ]
        for pairs in (3, 5, 8, 10, 15, 20)
    ]
    return "\n\n".join(
        [
            f"Mean {mean:.{DIGITS + 1}f}, standard deviation {deviation:.{DIGITS + 1}f} "
            f"({100 * deviation / mean:.2f} %). If the seeds of two methods had nothing in common, "
            f"a pair's difference would have a standard deviation of {pair:.{DIGITS + 1}f}; pairs "
            "that share their seeds should have less. With it a paired t-test (two-sided, level "
            f"{LEVEL:g}, power {POWER:g}, one comparison) finds a difference of:",
            table_of(["seeds", "loss", "of the mean"], rows),
            f"The minimum effect, {100 * MINIMUM:g} % or {MINIMUM * mean:.{DIGITS}f}, takes "
            + (f"**{needed} seeds**." if needed else "more than a hundred seeds."),
        ]
    )


def precision(done: Done) -> str:
    """Held-out losses of the cells that were run on several devices, side by side."""
    found: dict[str, dict[str, float]] = {}
    for key, line in done.items():
        device, _, cell = key.partition("/")
        found.setdefault(cell, {})[device] = line["held_out"]["loss"]
    shared = {cell: own for cell, own in found.items() if len(own) > 1}
    if not shared:
        return NOTHING
    devices = [device for device in DEVICES if any(device in own for own in shared.values())]
    rows = []
    for cell, own in shared.items():
        losses = [f"{own[one]:.{DIGITS + 1}f}" if one in own else "" for one in devices]
        apart = max(own.values()) - min(own.values())
        rows.append([f"`{cell}`", *losses, f"{100 * apart / min(own.values()):.3f} %"])
    return table_of(["cell", *devices, "apart"], rows)


def questions(done: Done) -> str:
    """Every setting with a comparison: curves, comparisons, and what else was seen."""
    parts = []
    for setting in settings(done):
        compared = tables(setting, done)
        if not compared:
            continue
        run = {line["method"] for line in done.values() if is_in(line, setting)} - {UNTRAINED}
        own = [method for method in NAMED if method in run]
        own += sorted(run - set(own))
        curved = [m for m in own if m not in RATES or len(losses(setting, m, done)) > 1]
        parts += [f"### {setting.named}", *_scale(setting, done)]
        parts.append(_curve_table(setting, curved, done))
        if _intervals(setting, done):
            picture = f"pictures/{_picture(setting, 'differences')}"
            parts.append(f"![Differences of held-out loss with their intervals]({picture})")
        for question, found in compared.items():
            for title, rows in found.items():
                parts += [f"{question}. {title}:"]
                parts += [table_of(COMPARED, [one.row() for one in rows])]
        for title, rows in again(setting, done).items():
            parts += [f"Again, by fresh seeds. {title}:", _again_table(title, rows)]
        parts += [
            *_right_answers(setting, own, done),
            *forgetting.tables(setting, own, done),
            *forgetting.notes(setting, done),
            *_routed(setting, own, done),
        ]
    return "\n\n".join(parts) or NOTHING


def _again_table(title: str, rows: Sequence[Comparison]) -> str:
    """A table of comparisons; those of all seeds together have no verdict."""
    shown = [dict(zip(COMPARED, one.row(), strict=True)) for one in rows]
    if title == TOGETHER:
        shown = [row | {"verdict": ""} for row in shown]
    return table_of(COMPARED, [list(row.values()) for row in shown])


def _scale(setting: Setting, done: Done) -> Iterator[str]:
    """What the loss is before training and after that of a plain LoRA."""
    before = done.get(setting.untrained().key)
    runs = Runs(setting, LORA, done)
    if before is None or not runs.lines:
        return
    after = fmean(runs.losses.values())
    parameters = next(iter(runs.lines.values()))["parameters"]
    digest = f" Digest of its rows: `{before['digest']}`." if "digest" in before else ""
    yield (
        f"The held-out loss is {before['held_out']['loss']:.{DIGITS}f} before training, and "
        f"{after:.{DIGITS}f} after that of `{LORA}`, which has {parameters:,} parameters. "
        f"{100 * MINIMUM:g} % of it are {MINIMUM * after:.{DIGITS}f}."
        + _heaviest(runs.lines.values())
        + digest
    )


def _heaviest(lines: Collection[Line]) -> str:
    """Which task has the most of the loss; held-out rows of one task lie side by side."""
    tasks = list(next(iter(lines))["held_out"]["by_task"])
    if len(tasks) < 2:
        return ""
    rows = np.mean([line["held_out"]["rows"] for line in lines], 0)
    shares = rows.reshape(len(tasks), -1).sum(1) / rows.sum()
    return (
        f" The {len(tasks)} tasks weigh as much as they have labels: `{tasks[shares.argmax()]}` "
        f"alone has {100 * shares.max():.0f} % of the loss. *Mean of tasks* counts every task the "
        "same."
    )


def _right_answers(setting: Setting, methods: Sequence[str], done: Done) -> Iterator[str]:
    """How many held-out rows were answered right, where that was asked, before and after."""
    before = done.get(setting.untrained().key)
    if before is None or not before["answered"]["rows"]:
        return
    asked = before["answered"]["rows"]
    rows = [["before training", str(before["answered"]["right"]), "", ""]]
    for method in methods:
        own = [line["answered"] for line in Runs(setting, method, done).lines.values()]
        right = [one["right"] for one in own if one["rows"] == asked]
        if right:
            ends = [f"{fmean(right):.1f}", f"{min(right)} to {max(right)}", str(len(right))]
            rows.append([f"`{method}`", *ends])
    yield f"Right answers, of {asked} rows:"
    yield table_of(["method", "mean", "range", "seeds"], rows)


def _routed(setting: Setting, methods: Sequence[str], done: Done) -> Iterator[str]:
    """What the routers did on the held-out rows."""
    found = means(setting, methods, done, lambda line: line["routers"])
    rows = [
        [
            f"`{method}`",
            *(shown(numbers[name]) if name in numbers else "" for name, shown in ROUTED.values()),
        ]
        for method, numbers in found.items()
    ]
    if rows:
        yield "Routers:"
        yield table_of(["method", *ROUTED], rows)


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


ROUTED = {
    "entropy": ("router_entropy", "{:.3f}".format),
    "largest gate": ("top_gate", "{:.3f}".format),
    "dead": ("dead_experts", _share),
    "dead, worst layer": ("dead_worst", _share),
    "told of tasks": ("specialisation", "{:.3f}".format),
}
"""Head of a column to the figure of a line and how it is written."""


def cells(done: Done) -> str:
    """A row for every cell that was run."""
    if not done:
        return NOTHING
    heads = ["cell", "parameters", "held-out loss", "text", "others", "entropy", "dead"]
    heads += ["answers", "s", "MiB", "KiB a token", "commit"]
    return table_of(heads, [_cell_row(key, line) for key, line in done.items()])


def _cell_row(key: str, line: Line) -> list[str]:
    routers = line["routers"] or {}
    others = [loss for name, loss in line["others"].items() if name != "text"]
    kept = line.get("kept_bytes")
    return [
        f"`{key}`",
        f"{line['parameters']:,}",
        f"{line['held_out']['loss']:.{DIGITS + 1}f}",
        f"{line['others']['text']:.{DIGITS}f}",
        f"{fmean(others):.{DIGITS}f}" if others else "",
        f"{routers['router_entropy']:.3f}" if routers else "",
        _share(routers["dead_experts"]) if "dead_experts" in routers else "",
        _answers(line["answered"]),
        f"{sum(line['seconds'].values()):.0f}",
        f"{line['peak_mib']:,}",
        f"{kept / 1024:,.0f}" if kept else "",
        line["commit"],
    ]


def _answers(answered: Mapping[str, Any]) -> str:
    """Right answers, and the interval of their share."""
    if not answered["rows"]:
        return ""
    low, high = answered["interval"]
    return f"{answered['right']} of {answered['rows']} ({100 * low:.0f} to {100 * high:.0f} %)"


def _curve_table(setting: Setting, methods: Sequence[str], done: Done) -> str:
    """Losses at seed 0 by learning rate; a whole curve's best is bold, what is to do is empty.

    The last column is how far the least of a parabola lies below the best, see `Runs.beside`.
    """
    rates = sorted(
        {rate for m in methods for rate in (*curve(setting, m, done), *losses(setting, m, done))}
    )
    rows = []
    for method in methods:
        known = losses(setting, method, done)
        whole = known and all(rate in known for rate in curve(setting, method, done))
        best = min(known, key=known.__getitem__) if whole else None
        shown = {rate: f"{loss:.{DIGITS}f}" for rate, loss in known.items()}
        if best is not None:
            shown[best] = f"**{shown[best]}**"
        beside = Runs(setting, method, done).beside
        less = "" if beside is None else percent(-beside)
        rows.append([f"`{method}`", *(shown.get(rate, "") for rate in rates), less])
    return table_of(["seed 0", *(f"{rate:g}" for rate in rates), "between rates"], rows)


def pictures(done: Done) -> dict[str, str]:
    """Name to content of every picture of the page."""
    found = {}
    for device in DEVICES:
        setting = Setting(device=device)
        series = {m: known for m in PILOT if (known := losses(setting, m, done))}
        if VARIANCE_OF in series:
            title = f"Held-out loss per label, {setting.named}, seed 0"
            found[_picture(setting, "pilot")] = chart.curves(title, series)
    for setting in settings(done):
        if groups := _intervals(setting, done):
            title = f"Difference of held-out loss, {setting.named}: left is better"
            found[_picture(setting, "differences")] = chart.intervals(title, groups, 100 * MINIMUM)
    return found


def _intervals(setting: Setting, done: Done) -> dict[str, list[tuple[str, float, float, float]]]:
    """Title of a table to its pairs that have all seeds, in percent."""
    found = {}
    asked = tables(setting, done) | {"Again, by fresh seeds": again(setting, done)}
    for question, own in asked.items():
        for title, compared in own.items():
            rows = [
                (
                    f"{one.method} / {one.against}",
                    100 * one.middle,
                    100 * one.low,
                    100 * one.high,
                )
                for one in compared
                if one.complete
            ]
            if rows:
                found[f"{question}. {title}"] = rows
    return found


def _picture(setting: Setting, what: str) -> str:
    where = "" if setting == Setting(device=setting.device) else f"{setting.base}-{setting.data}-"
    rows = "" if setting.rows == SMALL else f"{setting.rows}-"
    return f"study-{what}-{where}{rows}{setting.device}.svg"


def parts(path: Path = results.RESULTS) -> dict[str, Any]:
    """Name of a generated part of the page to what writes it."""
    done = results.read(path)
    return {
        "study-headline": lambda: conclusions.headline(done),
        "study-short": lambda: conclusions.short(done),
        "study-answer": lambda: conclusions.answer(done),
        "study-effort": lambda: conclusions.effort(done),
        "study-defaults": lambda: conclusions.defaults(done),
        "study-pilot": lambda: pilot(done),
        "study-precision": lambda: precision(done),
        "study-questions": lambda: questions(done),
        "study-cells": lambda: cells(done),
    }


def write_pictures(path: Path = results.RESULTS, folder: Path = PICTURES) -> None:
    """Draw the pictures."""
    for name, content in pictures(results.read(path)).items():
        (folder / name).write_text(content, encoding="utf-8")
