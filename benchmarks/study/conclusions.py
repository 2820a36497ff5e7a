"""What follows from the results: the answer on the page and in the README, and for the package."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from axolotl_alphalora.report import evidence

from . import forgetting, results
from .cells import (
    MAIN,
    MIXTURE,
    NAMED,
    PRIMARY,
    ROUTERS,
    SEEDS,
    SMALL,
    TITLES,
    Setting,
    further,
)
from .chart import table_of
from .compare import Runs, means
from .questions import QUESTIONS, planned, tables
from .results import Done, is_in, main, settings
from .verdicts import Verdicts

FINDINGS = Path(evidence.__file__).with_name("study.json")


def headline(done: Done) -> str:
    """The answer in a few sentences, and how the mixture does on other data."""
    setting = main(done)
    found = " ".join([*Verdicts(setting, done).main(), *_elsewhere(done)])
    return f"One small model and short runs ({setting.short}, {len(SEEDS)} seeds). {found}"


def short(done: Done) -> str:
    """The same for the README, line by line."""
    lines = [*Verdicts(main(done), done).main(), *_elsewhere(done)]
    return "\n".join(f"- {line}" for line in lines)


def _elsewhere(done: Done) -> Iterator[str]:
    """How a mixture does beside a LoRA on other data, more rows and other bases."""
    for setting in _others(done):
        found = Verdicts(setting, done)
        if PRIMARY[0] in found.pairs:
            own = replace(main(done), data=setting.data) == setting
            where = setting.data if own else setting.short
            yield found.clause(PRIMARY[0], subject=f"On {where} a mixture", other="a LoRA", many=0)


def _others(done: Done) -> list[Setting]:
    own = main(done)
    known = [one for one in settings(done) if one.device == own.device]
    return [one for one in known if one != own]


def answer(done: Done) -> str:
    """The answer, a line for each question."""
    setting = main(done)
    found = Verdicts(setting, done)
    said = {other: told for other in _others(done) if (told := Verdicts(other, done).short())}
    wanted = [Setting(data="bbh", device=setting.device), *further(setting.device)]
    missing = [other.short for other in wanted if other not in said]
    others = [f"On {other.short}: {told}." for other, told in said.items()]
    if said and missing:
        others.append(f"Not compared yet: {'; '.join(missing)}.")
    lines = {
        "Shape": found.shape(),
        "Allocation": found.allocation(),
        "Routing": [*found.routing(), *_told_of_tasks(done)],
        "Other data, more rows, another base": [*others, *_answers(done)],
        "Forgetting": forgetting.told(setting, done),
    }
    return "\n".join(
        f"{number}. **{what}.** {' '.join(said) or 'Not run yet.'}"
        for number, (what, said) in enumerate(lines.items(), 1)
    )


def _answers(done: Done) -> Iterator[str]:
    """How many held-out rows were answered right, where that was asked, before and after."""
    for setting in settings(done):
        before = done.get(setting.untrained().key)
        if before is None or not before["answered"]["rows"]:
            continue
        asked = before["answered"]["rows"]
        shown = []
        for method in NAMED:
            own = [line["answered"] for line in Runs(setting, method, done).lines.values()]
            if len(own) == len(SEEDS) and all(one["rows"] == asked for one in own):
                right = [one["right"] for one in own]
                shown.append(f"`{method}` {fmean(right):.1f} ({min(right)} to {max(right)})")
        if shown:
            yield (
                f"Right answers on {setting.data}, of {asked} (mean and range of the seeds): "
                f"{before['answered']['right']} before training, {', '.join(shown)}."
            )


def _told_of_tasks(done: Done) -> Iterator[str]:
    """How much the routers' choices give away of the task, where there are several tasks."""
    for setting in settings(done):
        found = means(setting, (MIXTURE, *ROUTERS), done, lambda line: line["routers"])
        told = {method: one[TOLD] for method, one in found.items() if TOLD in one}
        if told:
            shown = ", ".join(f"`{method}` {value:.3f}" for method, value in told.items())
            yield (
                f"What the choice of an expert tells of a token's task on {setting.data} (mutual "
                "information, as a part of the logarithm of the number of experts; two of five can "
                f"tell {TWO_OF_FIVE:.2f} at most; not corrected for chance): {shown}."
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
    missing = [method for method in NAMED if method not in run]
    others = "" if counted == len(trained) else f"{counted} of them "
    return (
        f"So far {len(trained)} cells (training runs) were done, {others}on {TITLES[MAIN]} with at "
        f"least {SMALL} rows, in {hours:.1f} hours of one thread on a machine with other work on "
        f"it. Comparisons that have all their seeds on {setting.data}: {', '.join(reached)}. "
        f"{len(missing)} of {len(NAMED)} methods have not been run there: "
        f"{', '.join(f'`{name}`' for name in missing)}."
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
