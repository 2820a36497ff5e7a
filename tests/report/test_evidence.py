"""What a plan is told of the study."""

import pytest

from axolotl_alphalora.report.evidence import read_study, study_line
from helpers.allocating import plan


def finding(verdict, difference=0.001):
    own = {"verdict": verdict, "difference": difference, "seeds": 5}
    return own | {"low": difference - 0.004, "high": difference + 0.004}


def study(even=None, **uneven):
    return {"where": "a model, 9 rows", "even": even, "uneven": uneven}


def test_a_plan_that_was_not_shown_to_differ_is_told_so_with_its_interval():
    line = study_line(
        plan("mola", options={"shape": "2468"}),
        study(finding("as good", -0.002), mola=finding("undecided")),
    )
    assert line == (
        "In our study (docs/study.md: a model, 9 rows) plans of mola did not show to differ from "
        "the same number of experts in every block (+0.10 % of held-out loss, -0.30 to +0.50 %, "
        "5 seeds), and the same number of experts in every block did as well as a plain LoRA of "
        "the same total rank (-0.20 % of held-out loss, -0.60 to +0.20 %, 5 seeds). On a model "
        "and data like these `allocation: uniform` or a plain LoRA (`--as-lora`) may do as well."
    )


@pytest.mark.parametrize("verdict", ["worse", "as good"])
def test_an_even_plan_is_compared_with_a_plain_lora(verdict):
    line = study_line(plan("uniform"), study(finding(verdict), mola=finding("better")))
    assert f"did {'worse than' if verdict == 'worse' else 'as well as'} a plain LoRA" in line
    assert line.endswith("like these a plain LoRA (`--as-lora`) does as well.")
    assert "mola" not in line


def test_what_did_better_is_not_advised_against():
    line = study_line(
        plan("mola", options={"shape": "2468"}), study(finding("better"), mola=finding("better"))
    )
    assert line.count("did better than") == 2 and "as well" not in line


def test_nothing_is_said_of_what_the_study_has_no_answer_on():
    known = study(finding("better"), mola=finding("better"))
    assert study_line(plan("depth"), known) is None
    assert study_line(plan("uniform"), study()) is None
    in_rank = plan("mola", options={"shape": "2468"}, spend="rank")
    assert study_line(in_rank, known) is None
    control = plan("mola", options={"shape": "2468", "order": "opposite"})
    assert study_line(control, known) is None


def test_the_study_comes_with_the_package():
    found = read_study()
    assert set(found) == {"where", "even", "uneven"}
    said = study_line(plan("uniform"))
    assert (said is None) == (found["even"] is None)
