"""What follows from the results: the answer on the page and in the README, and for the package."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from axolotl_alphalora.report import evidence

from . import forgetting, results
from .cells import (
    MAIN,
    MIXTURE,
    NAMED,
    PRIMARY,
    ROUTERS,
    SMALL,
    TITLES,
    Setting,
    further,
)
from .chart import table_of
from .compare import BETTER, VERDICTS, WORSE, Comparison, means
from .questions import QUESTIONS, planned, tables
from .results import Done, is_in, main, settings
from .verdicts import Verdicts

FINDINGS = Path(evidence.__file__).with_name("study.json")


def headline(done: Done) -> str:
    """How many comparisons came out which way, in a sentence."""
    own = [Verdicts(setting, done) for setting in [main(done), *_others(done)]]
    first = [one for found in own for one in _complete(found)]
    again = [one for found in own for one in found.alone.values() if one.complete]
    if not first:
        return "Nothing has been compared with all its seeds yet."
    decided = any(one.verdict in (BETTER, WORSE) for one in first + again)
    nothing = "Nothing was shown to be better or worse than what it was compared with. "
    fresh = f" Of {len(again)} with fresh seeds: {_counted(again)}." if again else ""
    return (
        f"{'' if decided else nothing}Of {len(first)} comparisons, on small models and in short "
        f"runs: {_counted(first)}.{fresh}"
    )


def _complete(found: Verdicts) -> list[Comparison]:
    return [one for one in found.pairs.values() if one.complete]


def _counted(found: Sequence[Comparison]) -> str:
    number = Counter(one.verdict for one in found)
    return ", ".join(f"{number[verdict]} {verdict}" for verdict in VERDICTS if number[verdict])


def answer(done: Done) -> str:
    """The answer, a line for each question."""
    setting = main(done)
    found = Verdicts(setting, done)
    said = _main(done)
    said["Shape"] += found.equal()
    said["Routing"] += _told_of_tasks(done)
    said["Forgetting"] = forgetting.against_lora(setting, done)
    return "\n".join(
        f"{number}. **{what}.** {' '.join(sentences) or 'Not run yet.'}"
        for number, (what, sentences) in enumerate(said.items(), 1)
    )


def short(done: Done) -> str:
    """The main comparisons, for the README."""
    return "\n".join(
        f"- **{what}.** {' '.join(sentences)}"
        for what, sentences in _main(done).items()
        if sentences
    )


def _main(done: Done) -> dict[str, list[str]]:
    return {**Verdicts(main(done), done).main(), "Other data and bases": list(_elsewhere(done))}


def _elsewhere(done: Done) -> Iterator[str]:
    """How a mixture does beside a LoRA on other data, more rows and other bases."""
    for setting in _others(done):
        found = Verdicts(setting, done)
        if PRIMARY[0] in found.pairs:
            where = f"On {_apart(setting, main(done))} a mixture"
            yield found.clause(PRIMARY[0], subject=where, other="a LoRA", many=0)


def _apart(setting: Setting, own: Setting) -> str:
    """What a setting has other than the main one."""
    named = {
        TITLES[setting.base]: setting.base != own.base,
        f"{setting.rows} rows": setting.rows != own.rows,
        setting.data: setting.data != own.data,
    }
    return ", ".join(name for name, other in named.items() if other)


def _others(done: Done) -> list[Setting]:
    own = main(done)
    known = [one for one in settings(done) if one.device == own.device]
    return [one for one in known if one != own]


def _told_of_tasks(done: Done) -> Iterator[str]:
    """How much the routers' choices give away of the task, where there are several tasks."""
    for setting in settings(done):
        found = means(setting, (MIXTURE, *ROUTERS), done, lambda line: line["routers"])
        told = {method: one[TOLD] for method, one in found.items() if TOLD in one}
        if told:
            shown = ", ".join(f"`{method}` {value:.3f}" for method, value in told.items())
            yield (
                f"What the choice of experts tells of a token's task on {setting.data} (two of "
                f"five can tell {TWO_OF_FIVE:.2f} at most): {shown}."
            )


TOLD = "specialisation"
TWO_OF_FIVE = math.log(5 / 2) / math.log(5)


def effort(done: Done) -> str:
    """How much was run, and how far each question got."""
    setting = main(done)
    trained = [line for line in done.values() if line["steps"]]
    counted = sum(line["base"] == MAIN and line["rows"] >= SMALL for line in trained)
    hours = sum(sum(line["seconds"].values()) for line in trained) / 3600
    reached = []
    for question in QUESTIONS:
        pairs = len(planned(setting, question))
        found = tables(setting, done).get(question, {}).values()
        whole = sum(one.complete for table in found for one in table)
        reached.append(f"{question.lower()} {whole} of {pairs}")
    run = {line["method"] for line in done.values() if is_in(line, setting)}
    missing = [f"`{method}`" for method in NAMED if method not in run]
    wanted = [Setting(data="bbh", device=setting.device), *further(setting.device)]
    elsewhere = [one.short for one in wanted if not _complete(Verdicts(one, done))]
    others = "" if counted == len(trained) else f"{counted} of them "
    return (
        f"So far {len(trained)} cells (training runs) were done, {others}on {TITLES[MAIN]} with at "
        f"least {SMALL} rows, in {hours:.1f} hours of one thread on a machine with other work on "
        f"it. Comparisons that have all their seeds on {setting.data}: {', '.join(reached)}. "
        f"{len(missing)} of {len(NAMED)} methods have not been run there: {', '.join(missing)}."
        + (f" Nothing has all its seeds on {'; '.join(elsewhere)}." if elsewhere else "")
    )


def defaults(done: Done) -> str:
    """What could change a default of the package, and whether it does."""
    rows = [list(row) for row in Verdicts(main(done), done).defaults()]
    return table_of(["default", "another setting against it (minus: it is better)", "so far"], rows)


def findings(done: Done) -> dict[str, Any]:
    """What `alphalora plan` says of the study, see `axolotl_alphalora.report.evidence`."""
    setting = main(done)
    where = f"{TITLES[setting.base]}, {setting.rows} rows of {setting.data}"
    return {"where": where, "plans": Verdicts(setting, done).findings()}


def write_findings(path: Path = results.RESULTS, file: Path = FINDINGS) -> None:
    """Write what the package says of the study."""
    text = json.dumps(findings(results.read(path)), indent=2)
    file.write_text(text + "\n", encoding="utf-8")
