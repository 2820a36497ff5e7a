"""What the study of this project found, and what that says of a plan.

`study.json` beside this module is written by `python -m benchmarks.study report`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from ..allocation import Plan

STUDY = "docs/study.md of axolotl-alphalora"
PLAINER = {
    "uniform": "the same number of experts in every block (`allocation: uniform`)",
    "lora": "a plain LoRA of the same total rank",
}
"""What a plan was compared with, in words."""
_SAID = {
    "better": "did worse",
    "worse": "did better",
    "within 0.5 %": "came within 0.5 % of it",
    "undecided": "was not shown to do better or worse",
}
"""Verdict on a plan to what is said of the plainer one."""
_SMALL = 0.05
"""A p value, after correction, that is told though the interval reaches 0."""


def read_study() -> dict[str, Any]:
    """Return what was found.

    Returns:
        `where`, in words, and `plans`: for each its `strategy`, the `options` that make it that
        plan, its `segments`, what it is `named` in a sentence, and `against`, a key of `PLAINER`
        to the comparison with that: `verdict`, `difference`, `low` and `high` of held-out loss as
        a part (negative where the plan is better), `p` after correction, `seeds`, `more`, the
        trained parameters that the plan has beyond the other's, as a part of them, and, where it
        was made again with fresh seeds, the same figures of those, `fresh`. Comparisons with too
        few seeds are left out.
    """
    text = files(__package__).joinpath("study.json").read_text(encoding="utf-8")
    return json.loads(text)


def study_line(plan: Plan, study: Mapping[str, Any] | None = None) -> str | None:
    """Say how a uniform mixture and a plain LoRA did beside plans of a kind, in the study.

    Args:
        plan: The plan.
        study: As `read_study` returns it, which is read if it is None.

    Returns:
        A sentence; None for a plan of a strategy that the study has no answer on, for a control
        and for numbers that are spent on rank.
    """
    if plan.control is not None or plan.spend == "rank":
        return None
    study = read_study() if study is None else study
    same = [row for row in study["plans"] if row["strategy"] == plan.strategy["name"]]
    if not same:
        return None
    row = max(same, key=lambda row: _likeness(row, plan))
    known = {key: row["against"][key] for key in PLAINER if key in row["against"]}
    said = [
        f"{PLAINER[key]} {_SAID[one['verdict']]} ({_figures(one)})" for key, one in known.items()
    ]
    where = f"{study['where']}; {STUDY}"
    return f"In our study ({where}), beside {row['named']}, {', and '.join(said)}."


def _likeness(row: Mapping[str, Any], plan: Plan) -> tuple[bool, bool]:
    """Of two plans the one of the same segments is nearer, then the one of the same options."""
    recorded = plan.strategy["options"]
    options = all(recorded.get(name) == value for name, value in row["options"].items())
    return row["segments"] == plan.segments, options


def _figures(found: Mapping[str, Any]) -> str:
    more = 100 * found["more"]
    said = f"the plan's loss {_difference(found)}"
    if "p" in found and (found["low"] * found["high"] > 0 or found["p"] < _SMALL):
        said += f", p {found['p']:.3f} after correction"
    if "fresh" in found:
        said += f"; with fresh seeds {_difference(found['fresh'])}"
    if abs(more) >= 2:
        said += f"; {abs(more):.0f} % {'more' if more > 0 else 'fewer'} parameters"
    return said


def _difference(found: Mapping[str, Any]) -> str:
    difference, low, high = (100 * found[name] for name in ("difference", "low", "high"))
    return (
        f"{abs(difference):.2f} % {'lower' if difference < 0 else 'higher'}, 95 %: {low:+.2f} to "
        f"{high:+.2f} %, {found['seeds']} seeds"
    )
