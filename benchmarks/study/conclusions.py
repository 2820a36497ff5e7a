"""What follows from the results: the answer on the page and in the README, and for the package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from axolotl_alphalora.report import evidence

from . import results
from .cells import MAIN, SMALL, TITLES
from .compare import QUESTIONS, tables
from .results import Done, main, settings
from .verdicts import Verdicts

FINDINGS = Path(evidence.__file__).with_name("study.json")


def headline(done: Done) -> str:
    """The answer in one sentence."""
    return Verdicts(main(done), done).headline()


def short(done: Done) -> str:
    """The answer for the README: in one sentence, and the two comparisons that it rests on."""
    found = Verdicts(main(done), done)
    return "\n".join(f"- {line}" for line in (found.headline(), *found.main()))


def answer(done: Done) -> str:
    """The answer, a line for each question."""
    setting = main(done)
    found = Verdicts(setting, done)
    others = [
        f"On {other.named}: {said}."
        for other in settings(done)
        if (other.base, other.data, other.rows) != (setting.base, setting.data, setting.rows)
        and (said := Verdicts(other, done).short())
    ]
    lines = {
        "Shape": found.shape(),
        "Allocation": found.allocation(),
        "Routing": found.routing(),
        "Other data, more rows, another base": others or ["Not run yet."],
        "Forgetting": found.forgetting(),
    }
    return "\n".join(
        f"{number}. **{what}.** {' '.join(said)}"
        for number, (what, said) in enumerate(lines.items(), 1)
    )


def effort(done: Done) -> str:
    """How much was run."""
    trained = [line for line in done.values() if line["steps"]]
    hours = sum(sum(line["seconds"].values()) for line in trained) / 3600
    main_rows = sum(line["base"] == MAIN and line["rows"] >= SMALL for line in trained)
    setting = main(done)
    reached = []
    for question, own in QUESTIONS.items():
        pairs = {pair for pairs in own.values() for pair in pairs}
        found = tables(setting, done).get(question, {}).values()
        whole = sum(one.complete for table in found for one in table)
        reached.append(f"{whole} of {len(pairs)} pairs of {question.lower()}")
    return (
        f"So far {len(trained)} cells were trained, {main_rows} of them on {TITLES[MAIN]} with at "
        f"least {SMALL} rows, in {hours:.1f} hours of one thread; the clock was that of a machine "
        f"with other work on it. On {setting.data}, {', '.join(reached)} have all their seeds."
    )


def defaults(done: Done) -> str:
    """What could change a default of the package, and whether it does."""
    rows = [list(row) for row in Verdicts(main(done), done).defaults()]
    return table_of(["default", "compared", "so far"], rows)


def findings(done: Done) -> dict[str, Any]:
    """What `alphalora plan` says of the study, see `axolotl_alphalora.report.evidence`."""
    setting = main(done)
    where = f"{TITLES[setting.base]}, {setting.rows} rows of {setting.data}"
    return {"where": where, "plans": Verdicts(setting, done).findings()}


def write_findings(path: Path = results.RESULTS, file: Path = FINDINGS) -> None:
    """Write what the package says of the study."""
    text = json.dumps(findings(results.read(path)), indent=2)
    file.write_text(text + "\n", encoding="utf-8")


def table_of(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)
