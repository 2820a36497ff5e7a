"""Verdicts follow from the figures, and from how many comparisons there are."""

from dataclasses import replace
from itertools import chain

import pytest

from benchmarks.study import conclusions
from benchmarks.study.cells import AGAIN, FRESH, GRID, PRIMARY, SHORT, Setting
from benchmarks.study.compare import BETTER, FEW, OPEN, SAME, WORSE, comparisons
from benchmarks.study.phrases import told
from benchmarks.study.questions import ALONE, QUESTIONS, TOGETHER, again, planned, tables
from benchmarks.study.verdicts import Verdicts
from helpers.study_lines import HERE, add, line, scatter

PAIR = ("alphalora-hill", "uniform")
CLOSE = (0.001, -0.001, 0.0005, 0.0, 0.0)


@pytest.mark.parametrize(
    ("loss", "offsets", "noise", "verdict"),
    [
        (1.07, CLOSE, 0.0, BETTER),
        (1.13, CLOSE, 0.0, WORSE),
        (1.1001, CLOSE, 0.0, SAME),
        (1.102, (0.0001, -0.0001, 0.0, 0.0, 0.0), 0.0, SAME),  # shown, and too little to matter
        (1.107, (0.008, -0.008, 0.008, -0.008, 0.0), 0.0, OPEN),
        (1.107, CLOSE, 9.0, OPEN),  # all seeds agree, the rows do not
        (1.1001, (0.005, -0.005, 0.005, -0.005, 0.0), 0.0, OPEN),  # only a t interval is too wide
    ],
)
def test_a_verdict_is_that_of_the_figures(done, loss, offsets, noise, verdict):
    scatter(done, "alphalora-hill", loss, *offsets, noise=noise)
    found = comparisons(HERE, [PAIR], done)[PAIR]
    assert found.verdict == verdict
    own = Verdicts(HERE, done)
    said, *_ = own.lines()["Allocation"]
    needed = f" ({own.pairs[PAIR].needed} seeds needed)" if verdict == OPEN else ""
    named = "AlphaLoRA's numbers by `hill` against 5 experts of rank 8 in every block"
    assert said.startswith(f"{named}: {verdict}{needed}, ")


def test_many_comparisons_ask_for_more(done):
    """A difference that is shown alone is not among twenty, nor with four seeds."""
    scatter(done, "alphalora-hill", 1.112, 0.004, -0.004, 0.004, -0.004, 0.0)
    alone = comparisons(HERE, [PAIR], done)[PAIR]
    assert alone.verdict == WORSE and 0.0025 < alone.p < 0.05
    others = [f"other-{number}" for number in range(20)]
    for name in others:
        add(done, name, 1.1)
    pairs = [PAIR, *((name, "uniform") for name in others)]
    found = Verdicts(HERE, done)
    found.pairs[PAIR] = comparisons(HERE, pairs, done)[PAIR]
    assert f"{OPEN} ({found.pairs[PAIR].needed} seeds needed), +" in found.sentence(PAIR)
    assert found.sentence(PAIR).endswith("), p 0.003, after correction 0.054.")
    reaching = replace(alone, low=-0.0001, corrected=0.03)
    assert reaching.verdict == OPEN and "after correction 0.030" in told(reaching)
    assert "after correction" not in told(replace(reaching, corrected=0.06))
    among = comparisons(HERE, pairs, done)[PAIR]
    assert among.p == alone.p and among.verdict == OPEN and among.family == 21
    assert int(among.needed) > int(alone.needed)
    for name in others:
        del done[HERE.cell(name, GRID[2], 4).key]
    assert comparisons(HERE, pairs, done)[PAIR].corrected == among.corrected, "they are to come"
    del done[HERE.cell("alphalora-hill", GRID[2], 4).key]
    fewer = comparisons(HERE, [PAIR], done)[PAIR]
    assert fewer.verdict == FEW and fewer.corrected is None


def test_no_two_comparisons_are_of_the_same_methods():
    pairs = [frozenset(p) for own in QUESTIONS.values() for p in chain.from_iterable(own.values())]
    assert len(set(pairs)) == len(pairs) and all(len(pair) == 2 for pair in pairs)
    assert {frozenset(pair) for pair in PRIMARY} <= set(pairs)


def test_the_two_main_comparisons_are_corrected_by_themselves(done):
    scatter(done, "alphalora-hill", 1.112, 0.004, -0.004, 0.004, -0.004, 0.0)
    scatter(done, "lora-r40", 1.0, *CLOSE)
    for name in ("mola-2468", "eva", "sensitivity", "dense"):
        add(done, name, 1.1)
    found = {
        (one.method, one.against): one
        for own in tables(HERE, done).values()
        for one in chain.from_iterable(own.values())
    }
    assert [found[pair].family for pair in PRIMARY] == [2, 2]
    assert found[PAIR].corrected == pytest.approx(found[PAIR].p)  # the larger of two
    assert found["eva", "uniform"].family == len(planned(HERE, "Allocation")) - 1 > 50
    assert found["dense", "uniform"].family == len(planned(HERE, "Shape")) - 1 == 30


def test_a_question_is_corrected_for_what_is_to_be_run_of_it_in_its_setting(done):
    assert len(planned(HERE, "Shape")) == sum(map(len, QUESTIONS["Shape"].values()))
    few = planned(Setting(data="commonsense"), "Shape")
    assert {name for pair in few for name in pair} <= set(SHORT) and 0 < len(few) < 5
    wide, bbh = (set(planned(Setting(data=data), "Allocation")) for data in ("gsm8k", "bbh"))
    assert {name for pair in wide - bbh for name in pair} == {"uniform-2", "alphalora-hill-2"} | {
        "lora-r16"
    }


def test_fresh_seeds_answer_by_themselves(done):
    assert again(HERE, done) == {} and "fresh" not in conclusions.answer(done)
    pair = AGAIN[1]
    scatter(done, "lora-r40", 1.0, *CLOSE)
    scatter(done, "uniform-seg4", 1.0, *CLOSE)
    before = Verdicts(HERE, done).sentence(pair)
    for seed, offset in zip(FRESH, CLOSE, strict=True):
        for method, loss in (("lora-r40", 1.0), ("uniform-seg4", 0.97 + offset)):
            one = line(method, GRID[2], seed, loss)
            done[one["cell"]] = one
        if seed == FRESH[2]:
            assert "fresh" not in conclusions.answer(done) + conclusions.headline(done)
    found = again(HERE, done)
    (alone,), (together,) = found[ALONE], found[TOGETHER]
    assert (alone.method, alone.against) == pair and alone.seeds == tuple(FRESH)
    assert alone.verdict == BETTER and alone.family == len(AGAIN)
    assert alone.corrected == pytest.approx(3 * alone.p)
    assert alone.middle == pytest.approx(-0.03, abs=1e-3)
    assert together.middle == pytest.approx(-0.015, abs=1e-3) and len(together.seeds) == 10
    assert together.p is None and together.corrected is None
    said = Verdicts(HERE, done).sentence(pair)
    assert said.startswith(before.rstrip(".")), "the first five stay what they were"
    assert "; by 5 fresh seeds better, -2.99 % (" in said and said not in conclusions.short(done)
    assert said in conclusions.answer(done).splitlines()[0]
    assert "Of 1 with fresh seeds: 1 better." in conclusions.headline(done)


@pytest.mark.parametrize("first", [1.0, 0.97, 1.03])
@pytest.mark.parametrize("loss", [0.97, 1.03])
def test_fresh_seeds_decide_a_default(done, first, loss):
    """Whatever the first ones said."""
    scatter(done, "uniform", 1.0)
    scatter(done, "uniform-seg4", first, *CLOSE)
    for method, own in (("uniform", 1.0), ("uniform-seg4", loss)):
        for seed, offset in zip(FRESH, CLOSE, strict=True):
            one = line(method, GRID[2], seed, own + (offset if "seg4" in method else 0))
            done[one["cell"]] = one
    rows = {default: (said, what) for default, said, what in Verdicts(HERE, done).defaults()}
    said, what = rows["`segments: 1`"]
    verdict, change = ("better", "is to change") if loss < 1 else ("worse", "stays")
    assert what == change and f"; by fresh seeds {verdict}: `uniform-seg4`" in said


def test_rates_between_those_that_were_tried_are_said_where_they_matter(done):
    scatter(done, "uniform-seg4", 1.0, *CLOSE)
    scatter(done, "lora-r40", 1.0, *CLOSE)
    pair = AGAIN[1]
    assert "between" not in Verdicts(HERE, done).sentence(pair)
    below, best, above = (done[HERE.cell("lora-r40", rate, 0).key] for rate in GRID[1:])
    near = best["held_out"]["loss"]
    below["held_out"]["loss"], above["held_out"]["loss"] = near + 0.01, near + 0.09
    found = Verdicts(HERE, done).pairs[pair]
    assert found.runs.beside == 0
    assert found.theirs.beside == pytest.approx(0.08**2 / (8 * 0.1) / near)
    assert found.finer == pytest.approx(found.middle + found.theirs.beside)
    said = Verdicts(HERE, done).sentence(pair)
    assert "rates between those that were tried might make it +0.80 %" in said
    assert found.finer is not None
    no_curve = comparisons(HERE, [("alphalora-hill", "uniform")], done)
    assert all(one.finer is None for one in no_curve.values())


def test_more_parameters_are_said(done):
    scatter(done, "alphalora-hill", 1.1, *CLOSE)
    assert "parameters" not in Verdicts(HERE, done).sentence(PAIR)
    for seed in range(5):
        done[HERE.cell("alphalora-hill", GRID[2], seed).key]["parameters"] = 1259
    found = Verdicts(HERE, done)
    assert found.sentence(PAIR).endswith("; 25 % more parameters.")  # than 1,007
    listed = found.listed([PAIR])
    assert listed.startswith("within 0.5 %: `alphalora-hill` against `uniform` (+0.01 %, -")
    assert listed.endswith("; 25 % more parameters)")
