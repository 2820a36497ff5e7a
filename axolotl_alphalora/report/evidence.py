"""What the study of this project found, and what that says of a plan.

`study.json` beside this module is written by `python -m benchmarks.study report`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from ..allocation import Plan

STUDY = "docs/study.md"
_NONE_SHOWN, _EVEN = "undecided", "the same number of experts in every block"
_LORA = "a plain LoRA of the same total rank"


def read_study() -> dict[str, Any]:
    """Return what was found.

    Returns:
        `where`, in words; `even`, a mixture with the same number everywhere against a plain LoRA;
        and `uneven`, name of a strategy to its plan against the same number everywhere. Each is
        None, or left out, while it has too few seeds, and else has `verdict`, `difference`, `low`
        and `high` of held-out loss as a part (negative where the first is better), and `seeds`.
    """
    text = files(__package__).joinpath("study.json").read_text(encoding="utf-8")
    return json.loads(text)


def study_line(plan: Plan, study: Mapping[str, Any] | None = None) -> str | None:
    """Say whether a uniform mixture or a plain LoRA would do as well as a plan, by the study.

    Args:
        plan: The plan.
        study: As `read_study` returns it, which is read if it is None.

    Returns:
        A sentence or two; None for a plan of a kind that the study has no answer on.
    """
    if plan.control is not None or plan.spend == "rank":
        return None
    study = read_study() if study is None else study
    name = plan.strategy["name"]
    compared = (
        (study["uneven"].get(name), f"plans of {name}", _EVEN),
        (study["even"] if name == "uniform" or name in study["uneven"] else None, _EVEN, _LORA),
    )
    found = [(one, first, second) for one, first, second in compared if one is not None]
    if not found:
        return None
    said = ", and ".join(_compared(*one) for one in found)
    plainer = [second for one, _, second in found if one["verdict"] != "better"]
    advice = ""
    if len(plainer) == len(found):
        how = {_EVEN: "`allocation: uniform`", _LORA: "a plain LoRA (`--as-lora`)"}
        sure = all(one["verdict"] != _NONE_SHOWN for one, _, _ in found)
        advice = (
            f" On a model and data like these {' or '.join(how[one] for one in plainer)} "
            f"{'does' if sure else 'may do'} as well."
        )
    return f"In our study ({STUDY}: {study['where']}) {said}.{advice}"


def _compared(one: Mapping[str, Any], first: str, second: str) -> str:
    verb = {
        "better": "did better than",
        "worse": "did worse than",
        "as good": "did as well as",
        _NONE_SHOWN: "did not show to differ from",
    }[one["verdict"]]
    return (
        f"{first} {verb} {second} ({100 * one['difference']:+.2f} % of held-out loss, "
        f"{100 * one['low']:+.2f} to {100 * one['high']:+.2f} %, {one['seeds']} seeds)"
    )
