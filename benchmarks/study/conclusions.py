"""What follows from the results: the answer on the page and in the README, and for the package."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from axolotl_alphalora.report import evidence

from . import forgetting, results
from .cells import (
    ALLOCATIONS,
    BUDGETS,
    CUT,
    CUT_MIXTURE,
    LORA,
    MAIN,
    MIXTURE,
    PRIMARY,
    ROUTERS,
    SEEDS,
    SHAPES,
    SMALL,
    TITLES,
    Setting,
    further,
)
from .chart import table_of
from .compare import BETTER, VERDICTS, WORSE, Comparison, Pair, Runs, means
from .questions import QUESTIONS, planned, tables
from .results import Done, is_in, main, settings
from .verdicts import FIRST, Verdicts

FURTHER = "Other data and bases"
METHODS = {"Shape": SHAPES, "Allocation": (*ALLOCATIONS, *CUT, *BUDGETS), "Routing": ROUTERS}
ELSEWHERE = (PRIMARY[0], (CUT_MIXTURE, LORA), PRIMARY[1])
"""Pairs that are told of other data and bases."""
FINDINGS = Path(evidence.__file__).with_name("study.json")


def headline(done: Done) -> str:
    """How many comparisons came out which way, in a sentence."""
    own = [Verdicts(setting, done) for setting in [main(done), *_others(done)]]
    first = [one for found in own for one in _complete(found)]
    again = [one for found in own for one in found.alone.values() if one.complete]
    if not first:
        return "Nothing has been compared with all its seeds yet."
    bases = " and ".join(
        dict.fromkeys(TITLES[found.setting.base] for found in own if _complete(found))
    )
    fresh = f" Of {len(again)} with fresh seeds: {_counted(again)}." if again else ""
    blind = sum(one.chance is not None and one.chance < 0.5 for one in first)
    if blind:
        fresh += (
            f" But {blind} of the {len(first)} had less than an even chance to find a true "
            "difference of 0.5 %."
        )
    return (
        f"{_nothing(first + again)}Of {len(first)} comparisons (short runs of {bases}; many use "
        f"the same runs): {_counted(first)}.{fresh}"
    )


def _nothing(found: Sequence[Comparison]) -> str:
    """The sentence for the case that nothing was decided."""
    if any(one.verdict in (BETTER, WORSE) for one in found):
        return ""
    return (
        "Not so far: neither mixtures of LoRA experts nor AlphaLoRA's plans were shown to be "
        "better, or worse, in held-out loss than what they were compared with. "
    )


def _complete(found: Verdicts) -> list[Comparison]:
    return [one for one in found.pairs.values() if one.complete]


def _counted(found: Sequence[Comparison]) -> str:
    number = Counter(one.verdict for one in found)
    return ", ".join(f"{number[verdict]} {verdict}" for verdict in VERDICTS if number[verdict])


def answer(done: Done) -> str:
    """The answer, a line for each question."""
    setting = main(done)
    said = Verdicts(setting, done).lines()
    said["Routing"] += [*_unused(done), *_told_of_tasks(done)]
    said[FURTHER] = list(_elsewhere(done, ELSEWHERE))
    said["Forgetting"] = [
        *forgetting.against_lora(setting, done),
        *forgetting.counted(setting, done),
        *_forgotten_elsewhere(done),
    ]
    return "\n".join(
        f"{number}. **{what}.** {' '.join(sentences) or 'Not run yet.'}"
        for number, (what, sentences) in enumerate(said.items(), 1)
    )


def short(done: Done) -> str:
    """The main comparisons, for the README."""
    found = Verdicts(main(done), done)
    said = {**found.lines(FIRST), FURTHER: list(_elsewhere(done, PRIMARY[:1]))}
    lines = [f"**{what}.** {' '.join(sentences)}" for what, sentences in said.items() if sentences]
    nothing = _nothing([*_complete(found), *found.alone.values()]).strip()
    terms = (
        "Each line: held-out loss of the first against the second (minus: the first is better), "
        f"95 % interval; {_where(found.setting)}, {len(SEEDS)} seeds, two experts a token, unless "
        "said. *Undecided*: neither a difference nor a tie within 0.5 % is shown, after correction "
        "for the number of comparisons. *Needed*: so many seeds would find 0.5 % four times in "
        "five. `xmin_peak` and `hill` are ways to measure alpha. In full: [the "
        "study](docs/study.md)."
    )
    return "\n".join([f"{nothing} {terms}".strip(), "", *(f"- {line}" for line in lines)])


def _elsewhere(done: Done, pairs: Sequence[Pair]) -> Iterator[str]:
    """What was found of some pairs on other data, more rows and other bases."""
    before: list[str] = []
    for setting in _others(done):
        found, where = Verdicts(setting, done), _apart(setting, main(done))
        known = [pair for pair in pairs if pair in found.pairs]
        named = [found.named(pair) for pair in known]
        if len(known) == 1 and named == before:
            yield f"The same on {where}: {found.told(known[0])}."
        elif known:
            yield f"On {where}: {' '.join(map(found.sentence, known))}"
        before = named or before


def _forgotten_elsewhere(done: Done) -> Iterator[str]:
    for setting in _others(done):
        beside = forgetting.beside(setting, done)
        if beside:
            yield f"On {_apart(setting, main(done))}: {beside}."


def _apart(setting: Setting, own: Setting) -> str:
    """What a setting has other than the main one."""
    named = {
        TITLES[setting.base]: setting.base != own.base,
        f"{setting.rows} rows": setting.rows != own.rows,
        setting.data: setting.data != own.data,
    }
    return ", ".join(name for name, other in named.items() if other)


def _others(done: Done) -> list[Setting]:
    """The other settings, each on the device where most of it was run."""
    number = {one: sum(is_in(line, one) for line in done.values()) for one in settings(done)}
    most: dict[Setting, Setting] = {}
    for one, lines in number.items():
        named = replace(one, device="")
        if named not in most or lines > number[most[named]]:
            most[named] = one
    return [one for named, one in most.items() if named != replace(main(done), device="")]


def _unused(done: Done) -> Iterator[str]:
    """How many experts nearly no token uses, with the load-balancing loss and without."""
    setting = main(done)
    found = means(setting, (MIXTURE, "unbalanced"), done, lambda line: line["routers"])
    if len(found) == 2 and all("dead_experts" in one for one in found.values()):
        with_it, without = (100 * one["dead_experts"] for one in found.values())
        yield (
            f"Without that loss {without:.1f} % of the experts get under a tenth of their share of "
            f"tokens, with it {with_it:.1f} %."
        )


def _told_of_tasks(done: Done) -> Iterator[str]:
    """How much the routers' choices give away of the task, where there are several tasks."""
    for setting in settings(done):
        methods = (MIXTURE, *ROUTERS)
        found = means(setting, methods, done, lambda line: line["routers"])
        told = []
        for method, one in found.items():
            if TOLD in one:
                seeds = len(Runs(setting, method, done).lines)
                few = "" if seeds >= len(SEEDS) else f" ({seeds} of {len(SEEDS)} seeds)"
                told.append(f"`{method}` {one[TOLD]:.3f}{few}")
        if told:
            yield (
                f"How much its experts tell of a token's task on {setting.data} (0 to "
                f"{TWO_OF_FIVE:.2f}, not corrected for chance): {', '.join(told)}."
            )


TOLD = "specialisation"
TWO_OF_FIVE = math.log(5 / 2) / math.log(5)


def effort(done: Done) -> str:
    """How much was run, and how far each question got."""
    setting = main(done)
    trained = [line for line in done.values() if line["steps"]]
    counted = sum(line["base"] == MAIN and line["rows"] >= SMALL for line in trained)
    hours = sum(sum(line["seconds"].values()) for line in trained) / 3600
    others = "" if counted == len(trained) else f"{counted} of them "
    return "\n".join(
        [
            f"So far {len(trained)} cells (training runs) were done, {others}on {TITLES[MAIN]} "
            f"with at least {SMALL} rows, in {hours:.1f} hours of one thread on a machine with "
            "other work on it. How far each question got:",
            "",
            *_reached(setting, done),
            *_reached_elsewhere(done),
        ]
    )


def _reached(setting: Setting, done: Done) -> Iterator[str]:
    """What was not run of each question in the main setting."""
    run = {line["method"] for line in done.values() if is_in(line, setting)}
    whole = _whole(setting, done)
    for question, methods in METHODS.items():
        own = [name for name in methods if name not in (LORA, MIXTURE)]
        seeds = {name: len(Runs(setting, name, done).lines) for name in own}
        missing = [f"`{name}`" for name in own if name not in run]
        few = [
            f"`{name}` ({seeds[name]} of {len(SEEDS)} seeds)"
            for name in own
            if name in run and seeds[name] < len(SEEDS)
        ]
        yield (
            f"- **{question}**, {setting.data}: {whole[question]}."
            + (f" Too few seeds: {', '.join(few)}." if few else "")
            + (f" Not run: {', '.join(missing)}." if missing else "")
        )


def _reached_elsewhere(done: Done) -> Iterator[str]:
    """How far the settings of the fourth question got, and the fifth."""
    device = main(done).device
    own = {replace(one, device=""): one for one in _others(done)}
    wanted = [Setting(data="bbh", device=device), *further(device)]
    shown = []
    for setting in (own.get(replace(one, device=""), one) for one in wanted):
        reached = "not run"
        if any(is_in(line, setting) and line["steps"] for line in done.values()):
            whole = _whole(setting, done).items()
            reached = ", ".join(f"{question.lower()} {said}" for question, said in whole)
        shown.append(f"{setting.short} ({reached})")
    yield f"- **{FURTHER}**: {'; '.join(shown)}."
    yield "- **Forgetting** is measured in every cell."


def _whole(setting: Setting, done: Done) -> dict[str, str]:
    """Question to how many of its comparisons have all their seeds; those without any left out."""
    found = tables(setting, done)
    said = {}
    for question in QUESTIONS:
        whole = sum(one.complete for table in found.get(question, {}).values() for one in table)
        if pairs := planned(setting, question):
            said[question] = f"{whole} of {len(pairs)} comparisons"
    return said


def defaults(done: Done) -> str:
    """What could change a default of the package, and whether it does."""
    rows = [list(row) for row in Verdicts(main(done), done).defaults()]
    return table_of(["default", "another setting against it (minus: it is better)", "so far"], rows)


def findings(done: Done) -> dict[str, Any]:
    """What `alphalora plan` says of the study, see `axolotl_alphalora.report.evidence`."""
    setting = main(done)
    return {"where": _where(setting), "plans": Verdicts(setting, done).findings()}


def _where(setting: Setting) -> str:
    return f"{TITLES[setting.base]}, {setting.rows} rows of {setting.data}"


def write_findings(path: Path = results.RESULTS, file: Path = FINDINGS) -> None:
    """Write what the package says of the study."""
    text = json.dumps(findings(results.read(path)), indent=2)
    file.write_text(text + "\n", encoding="utf-8")
