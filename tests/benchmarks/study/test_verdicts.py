"""What the page says in words follows from its figures."""

import pytest

from benchmarks.study import report
from benchmarks.study.cells import GRID
from benchmarks.study.compare import BETTER, FEW, OPEN, SAME, WORSE, comparisons
from benchmarks.study.verdicts import SAID, Verdicts
from helpers.study_lines import HERE, LABELS, add

PAIR = ("alphalora-hill", "uniform")


def scattered(done, method, loss, *offsets):
    """Five seeds of a method; each one's loss has an offset of its own."""
    add(done, method, loss)
    for seed, offset in enumerate(offsets):
        one = done[HERE.cell(method, GRID[2], seed).key]["held_out"]
        one["loss"] = loss + 0.001 * seed + offset
        one["rows"] = [
            row + offset * labels for row, labels in zip(one["rows"], LABELS, strict=True)
        ]


@pytest.mark.parametrize(
    ("loss", "offsets", "verdict"),
    [
        (1.07, (0.001, -0.001, 0.0005, 0.0, 0.0), BETTER),
        (1.13, (0.001, -0.001, 0.0005, 0.0, 0.0), WORSE),
        (1.1001, (0.001, -0.001, 0.0005, -0.0005, 0.0), SAME),
        (1.107, (0.008, -0.008, 0.008, -0.008, 0.0), OPEN),
        (1.1001, (0.02, -0.02, 0.02, -0.02, 0.0), OPEN),
    ],
)
def test_a_verdict_is_that_of_the_figures(done, loss, offsets, verdict):
    scattered(done, "alphalora-hill", loss, *offsets)
    (found,) = comparisons(HERE, [PAIR], done)
    assert found.verdict == verdict
    said = Verdicts(HERE, ["alphalora-hill", "uniform"], done)
    assert SAID[verdict][1] in said.headline()
    assert f" {verdict}" in said.sentence(PAIR)


def test_many_comparisons_ask_for_more(done):
    """A difference that is shown alone is not among twenty, nor with four seeds."""
    scattered(done, "alphalora-hill", 1.107, 0.003, -0.003, 0.003, -0.003, 0.0)
    (alone,) = comparisons(HERE, [PAIR], done)
    assert alone.verdict == WORSE and 0.005 < alone.p < 0.05
    others = [f"other-{number}" for number in range(20)]
    for name in others:
        add(done, name, 1.1)
    among = comparisons(HERE, [PAIR, *((name, "uniform") for name in others)], done)
    assert among[0].p == alone.p and among[0].verdict == OPEN
    del done[HERE.cell("alphalora-hill", GRID[2], 4).key]
    (fewer,) = comparisons(HERE, [PAIR], done)
    assert fewer.verdict == FEW and "(4 seeds)" not in fewer.row()


def test_the_answer_has_a_line_for_each_question_and_names_what_was_run(done):
    scattered(done, "alphalora-hill", 1.07, 0.001, -0.001, 0.0005, 0.0, 0.0)
    scattered(done, "lora-r40", 1.0, 0.001, -0.001, 0.0, 0.0, 0.0)
    lines = report.answer(done).splitlines()
    assert len(lines) == 5
    assert "`uniform` against `lora-r40`: +9.98 %" in lines[0] and ", worse." in lines[0]
    assert "`uniform` and `lora-r16` have not been run with the same seeds yet." in lines[0]
    assert "`alphalora-hill` against `uniform`: -2.7" in lines[1] and ", better." in lines[1]
    assert "not run yet" in lines[2] and "Not run yet." in lines[3]
    assert "bbh +0.00 (`lora-r40`)" in lines[4]
    assert report.headline(done).startswith("A mixture of LoRA experts did worse than a plain LoRA")


def test_other_data_are_answered_apart(done):
    scattered(done, "lora-r40", 1.0, 0.001, -0.001, 0.0, 0.0, 0.0)
    other = {}
    for key, line in done.items():
        other[key.replace("/gsm8k/", "/bbh/")] = line | {"data": "bbh"}
    (elsewhere,) = [row for row in report.answer(done | other).splitlines() if "Elsewhere" in row]
    said = "On smollm2, 320 rows of bbh, cpu: worse: `uniform` against `lora-r40` (+9.98 %)."
    assert said in elsewhere


def test_what_was_not_run_has_no_verdict():
    assert SAID[FEW][0] in report.headline({}) and SAID[FEW][1] in report.headline({})
    assert report.answer({}).count("not run") + report.answer({}).count("not been run") >= 4


def test_what_has_too_few_seeds_is_no_finding(done):
    scattered(done, "lora-r40", 1.0, 0.001, -0.001, 0.0, 0.0, 0.0)
    scattered(done, "alphalora-hill", 1.07, 0.001, -0.001, 0.0005, 0.0, 0.0)
    found = report.findings(done)
    assert found["where"] == "smollm2, 320 rows of gsm8k" and set(found["uneven"]) == {"alphalora"}
    one = found["uneven"]["alphalora"]
    assert one["verdict"] == BETTER and one["seeds"] == 5
    assert one["low"] <= one["difference"] <= one["high"] < 0
    assert one["difference"] == pytest.approx(-0.03 / 1.102, abs=3e-4)
    assert found["even"]["verdict"] == WORSE
    del done[HERE.cell("uniform", GRID[2], 3).key]
    assert report.findings(done) == {"where": found["where"], "even": None, "uneven": {}}
