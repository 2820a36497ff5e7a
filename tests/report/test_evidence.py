"""What a plan is told of the study."""

import pytest

from axolotl_alphalora.report.evidence import PLAINER, read_study, study_line
from helpers.allocating import plan

MOLA = {"shape": "2468"}


def finding(verdict, difference=0.001, more=0.0):
    own = {"verdict": verdict, "difference": difference, "more": more, "seeds": 5}
    return own | {"low": difference - 0.004, "high": difference + 0.004}


def row(strategy, named="a plan", options=None, segments=1, **against):
    known = {"options": options or {}, "segments": segments}
    return {"strategy": strategy, **known, "named": named, "against": against}


def study(*rows):
    return {"where": "a model, 9 rows", "plans": list(rows)}


def test_a_plan_is_told_how_the_plainer_ones_did_with_their_intervals():
    line = study_line(
        plan("mola", options=MOLA),
        study(row("mola", uniform=finding("undecided"), lora=finding("within 0.5 %", -0.002))),
    )
    assert line == (
        "In our study (a model, 9 rows; docs/study.md of axolotl-alphalora), beside a plan, the "
        "same number of experts in every block (`allocation: uniform`) was not shown to do better "
        "or worse (the plan's loss 0.10 % higher, 95 %: -0.30 to +0.50 %, 5 seeds), and a plain "
        "LoRA of the same total rank came within 0.5 % of it (the plan's loss 0.20 % lower, 95 %: "
        "-0.60 to +0.20 %, 5 seeds)."
    )


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("better", "did worse"),
        ("worse", "did better"),
        ("within 0.5 %", "came within 0.5 % of it"),
        ("undecided", "was not shown to do better or worse"),
    ],
)
def test_a_verdict_on_a_plan_is_turned_round_for_the_plainer_one(verdict, said):
    line = study_line(plan("uniform"), study(row("uniform", lora=finding(verdict))))
    assert f"beside a plan, {PLAINER['lora']} {said} (" in line and "uniform" not in line


def test_a_plan_is_told_of_its_own_kind_and_else_by_name_of_the_nearest():
    rows = (
        row("mola", "MoLA's 8-6-4-2", {"shape": [8, 6, 4, 2]}, uniform=finding("worse")),
        row("mola", "MoLA's 2-4-6-8", {"shape": [2, 4, 6, 8]}, uniform=finding("better")),
    )
    assert "beside MoLA's 2-4-6-8, " in study_line(plan("mola", options=MOLA), study(*rows))
    other = study_line(plan("mola", options={"shape": "1-3"}), study(*rows))
    assert "beside MoLA's 8-6-4-2, " in other
    rows += (row("mola", "a cut one", {"shape": [8, 6, 4, 2]}, 4, uniform=finding("better")),)
    assert "beside MoLA's 2-4-6-8, " in study_line(plan("mola", options=MOLA), study(*rows))
    cut = plan("mola", options=MOLA, segments=4)
    assert "beside a cut one, " in study_line(cut, study(*rows))


@pytest.mark.parametrize(
    ("more", "said"),
    [(0.25, "seeds; 25 % more parameters)"), (-0.06, "; 6 % fewer parameters)"), (0.01, "seeds)")],
)
def test_a_plan_that_trains_more_is_told_so(more, said):
    line = study_line(plan("uniform"), study(row("uniform", lora=finding("better", more=more))))
    assert line.endswith(f"{said}.") and (("parameters" in line) == (abs(more) > 0.02))


def test_nothing_is_said_of_what_the_study_has_no_answer_on():
    known = study(row("mola", uniform=finding("better")), row("uniform", lora=finding("worse")))
    assert study_line(plan("mola", options=MOLA), known)
    assert study_line(plan("depth"), known) is None
    assert study_line(plan("uniform"), study()) is None
    in_rank = plan("mola", options=MOLA, spend="rank")
    assert study_line(in_rank, known) is None
    control = plan("mola", options={**MOLA, "order": "opposite"})
    assert study_line(control, known) is None


def test_the_study_comes_with_the_package():
    found = read_study()
    told = {row["strategy"] for row in found["plans"]}
    assert told <= {"uniform", "alphalora", "mola", "sensitivity", "eva"}
    assert (study_line(plan("uniform")) is not None) == ("uniform" in told)


def test_what_speaks_against_a_first_look_is_told_with_it():
    """A difference that is not one after correction, and what fresh seeds say of it."""
    first = finding("undecided", -0.0064) | {"p": 0.098, "fresh": finding("within 0.5 %", -0.0014)}
    line = study_line(plan("uniform"), study(row("uniform", lora=first)))
    assert line.endswith(
        "(the plan's loss 0.64 % lower, 95 %: -1.04 to -0.24 %, 5 seeds, p 0.098 after correction; "
        "with fresh seeds 0.14 % lower, 95 %: -0.54 to +0.26 %, 5 seeds)."
    )
    for p, told in ((0.5, False), (0.03, True)):
        around = finding("undecided", -0.001) | {"p": p}
        line = study_line(plan("uniform"), study(row("uniform", lora=around)))
        assert ("after correction" in line) == told
