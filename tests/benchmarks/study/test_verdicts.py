"""What the page says in words follows from its figures."""

from dataclasses import replace
from itertools import chain

import pytest

from benchmarks.study import conclusions, report
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


def test_the_answer_has_a_line_for_each_question_and_names_what_was_run(done):
    scatter(done, "alphalora-hill", 1.07, *CLOSE)
    for seed in range(5):
        done[HERE.cell("alphalora-hill", GRID[2], seed).key]["blocks"] = [4, 6, 5]
    scatter(done, "lora-r40", 1.0, *CLOSE)
    shape, allocation, routing, other, forgotten = conclusions.answer(done).splitlines()
    assert "rank 8 in every block against a LoRA of rank 40: worse, +9.9" in shape
    assert "quarter" not in shape and "xmin_peak" not in allocation, "not run"
    even = "`hill` (4 to 6 a block) against 5 experts of rank 8 in every block: better, -2."
    assert even in allocation and "the other way" not in allocation
    assert "`hill` (4 to 6 a block) against a LoRA of rank 40: worse, +" in allocation
    assert "Not run yet." in routing and "Not run yet." in other
    assert "adds to the losses on other sets, in nats: bbh +0.00, text +0.00." in forgotten
    assert "against the LoRA: bbh +0.00 (+0.00 to +0.00), text +0.00 (" in forgotten
    assert [line[:10] for line in conclusions.short(done).splitlines()] == [
        "Each line:",
        "",
        "- **Shape.",
    ]
    scatter(done, "alphalora-hill-opposite", 1.07, *CLOSE)
    scatter(done, "uniform-seg4", 0.97, *CLOSE)
    scatter(done, "lora-equal-seg4", 1.0, *CLOSE)
    scatter(done, "fixed-router", 1.3, *CLOSE)
    shape, allocation, routing, *_ = conclusions.answer(done).splitlines()
    assert "20 quarter experts (`segments: 4`) against a LoRA of rank 40: better, -2.9" in shape
    assert "(`segments: 4`) against a LoRA of as many parameters: better, -2.9" in shape
    assert "against the same numbers the other way round: within 0.5 %, +0.00" in allocation
    assert "as they were drawn against 5 experts of rank 8 in every block: worse, +1" in routing
    short = conclusions.short(done)
    assert "quarter" not in short and "the other way round" in short and "Routers that" in short
    del done[HERE.cell("alphalora-hill-opposite", GRID[2], 0).key]
    said = conclusions.answer(done).splitlines()[1]
    assert "against the same numbers the other way round: 4 of 5 seeds so far." in said


def test_the_first_sentence_counts_the_verdicts(done):
    assert conclusions.headline({}) == "Nothing has been compared with all its seeds yet."
    scatter(done, "lora-r40", 1.1, *CLOSE)
    scatter(done, "alphalora-hill", 1.107, 0.008, -0.008, 0.008, -0.008, 0.0)
    said = conclusions.headline(done)
    assert said.startswith(
        "Not so far: neither mixtures of LoRA experts nor AlphaLoRA's plans were"
    )
    rare = "But 2 of the 3 had less than an even chance to find a true difference of 0.5 %."
    assert said.endswith(f": 1 within 0.5 %, 2 undecided. {rare}")
    assert conclusions.short(done).startswith("Not so far: neither")
    scatter(done, "lora-r40", 1.0, *CLOSE)
    said = conclusions.headline(done)
    assert said.startswith("Of 3 comparisons (") and ": 1 undecided, 2 worse. But " in said
    assert "Not so far" not in conclusions.short(done)


def test_other_data_and_bases_are_answered_apart(done):
    scatter(done, "lora-r40", 1.0, *CLOSE)
    other = {}
    for key, one in done.items():
        other[key.replace("/gsm8k/", "/bbh/")] = one | {"data": "bbh"}
        gpu = one | {"base": "gemma3", "device": "cuda"}
        other[key.replace("cpu/smollm2/", "cuda/gemma3/")] = gpu
    found = conclusions.answer(done | other).splitlines()[3]
    worse = "5 experts of rank 8 in every block against a LoRA of rank 40: worse, +9.97 % ("
    assert f" On bbh: {worse}" in found
    assert " The same on Gemma-3-270M: worse, +9.97 % (" in found
    assert "same on Gemma-3-270M: worse" in conclusions.short(done | other), "on another device"
    alone = {key: one for key, one in other.items() if one["base"] == "gemma3"}
    assert f" On Gemma-3-270M: {worse}" in conclusions.answer(done | alone)
    both = "(short runs of SmolLM2-135M-Instruct and Gemma-3-270M;"
    assert both in conclusions.headline(done | other)
    few = {key: one for key, one in other.items() if one["data"] == "bbh" and one["seed"] < 2}
    for data, base, device in (("bbh", "smollm2", "cuda"), ("gsm8k", "gemma3", "cpu")):
        own = {"data": data, "base": base, "device": device}
        elsewhere = {f"{device}/{base}/{data}/{n}": one | own for n, one in enumerate(few.values())}
        said = conclusions.answer(done | elsewhere | other).splitlines()[3]
        assert said == found, "where most of it was run"
    said = conclusions.answer(done | few).splitlines()[3]
    assert said.endswith("On bbh: " + worse.partition(": ")[0] + ": 2 of 5 seeds so far.")


def test_how_far_each_question_got_is_said(done):
    add(done, "fixed-router", 1.1)
    del done[HERE.cell("fixed-router", GRID[2], 4).key]
    bbh = {key.replace("/gsm8k/", "/bbh/"): one | {"data": "bbh"} for key, one in done.items()}
    said = conclusions.effort(done | bbh).splitlines()
    shape, allocation, routing, other, _ = (line for line in said if line.startswith("- **"))
    assert shape.startswith("- **Shape**, gsm8k: 1 of 31 comparisons. Not run: `uniform-seg4`, ")
    assert "`lora-r40`" not in shape and allocation.endswith(", `alphalora-hill-2`.")
    assert routing.startswith("- **Routing**, gsm8k: 0 of 6 comparisons. Too few seeds: `fixed-r")
    assert routing.endswith("(4 of 5 seeds). Not run: `shared-router`, `unbalanced`.")
    assert "320 rows of bbh (shape 1 of 31 comparisons, " in other
    assert "; SmolLM2-135M-Instruct, 1280 rows of gsm8k (not run); " in other


def test_right_answers_are_told_where_they_were_asked(done):
    assert "Right answers" not in report.questions(done)
    done[HERE.untrained().key]["answered"] = {"rows": 50, "right": 7}
    for seed in range(5):
        one = done[HERE.cell("uniform", GRID[2], seed).key]
        one["answered"] = {"rows": 50, "right": 10 + seed}
    said = report.questions(done).partition("Right answers, of 50 rows:")[2].split("\n\n")[1]
    assert "| before training | 7 |" in said and "`lora-r40`" not in said
    assert "| `uniform` | 12.0 | 10 to 14 | 5 |" in said
    done[HERE.cell("uniform", GRID[2], 3).key]["answered"] = {"rows": 0, "why": "not asked for"}
    assert "| `uniform` | 11.8 | 10 to 14 | 4 |" in report.questions(done)


def test_what_the_routers_know_of_tasks_is_told_where_there_are_several(done):
    assert "of a token's task" not in conclusions.answer(done)
    for seed in range(5):
        one = done[HERE.cell("uniform", GRID[2], seed).key]
        one["routers"] = {**one["routers"], "specialisation": 0.02 + 0.01 * seed}
    said = conclusions.answer(done).splitlines()[2]
    assert "a token's task on gsm8k (0 to 0.57, not corrected for chance): `uniform` 0.0" in said
    assert said.endswith("0.040.")
    del done[HERE.cell("uniform", GRID[2], 4).key]
    assert conclusions.answer(done).splitlines()[2].endswith("0.035 (4 of 5 seeds).")


def test_idle_experts_are_told_with_the_balance_that_they_lack(done):
    assert "a tenth of their share" not in conclusions.answer(done)
    add(done, "unbalanced", 1.1)
    for method, dead in (("uniform", 0.028), ("unbalanced", 0.204)):
        for seed in range(5):
            one = done[HERE.cell(method, GRID[2], seed).key]
            one["routers"] = {**(one["routers"] or {}), "dead_experts": dead}
    said = conclusions.answer(done).splitlines()[2]
    assert "Without that loss 20.4 % of the experts get under a tenth" in said
    assert said.endswith("with it 2.8 %.")


def test_what_was_not_run_has_no_verdict():
    assert conclusions.answer({}).lower().count("not run yet.") == 5


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


def test_a_default_is_to_change_where_something_else_did_better(done):
    scatter(done, "dense", 1.07, *CLOSE)
    scatter(done, "share-a", 1.13, *CLOSE)
    rows = {
        default: (compared, what) for default, compared, what in Verdicts(HERE, done).defaults()
    }
    assert rows["`top_k: 2`"][1] == "is to change" and "better: `dense`" in rows["`top_k: 2`"][0]
    assert rows["`share_a: false`"][1] == "stays" and "worse" in rows["`share_a: false`"][0]
    assert rows["`router_lr_ratio: 1`"] == ("nothing here varies it", "stays")
    assert conclusions.defaults(done).count("\n") == 1 + len(rows)


def test_what_was_run_is_counted_with_its_hours(done):
    said = conclusions.effort(done)
    assert said.startswith("So far 16 cells (training runs) were done, on SmolLM2-135M-Instruct")
    assert "in 0.1 hours" in said  # 16 of 12 s, and the untrained one not


def test_what_has_too_few_seeds_is_no_finding(done):
    scatter(done, "lora-r40", 1.0, *CLOSE)
    scatter(done, "alphalora-hill", 1.07, *CLOSE)
    scatter(done, "mola-8642", 1.2, *CLOSE)
    add(done, "uniform-seg4", 1.0)
    scatter(done, "eva-seg4", 1.1, *CLOSE)
    found = conclusions.findings(done)
    assert found["where"] == "SmolLM2-135M-Instruct, 320 rows of gsm8k"
    *whole, even, eva = found["plans"]
    assert (even["strategy"], eva["strategy"]) == ("uniform", "eva")
    assert (
        even["segments"] == eva["segments"] == 4
        and eva["named"] == "numbers by EVA, each cut into 4"
    )
    assert eva["against"]["uniform"]["difference"] == pytest.approx(0.1, abs=3e-3)
    rows = {row["strategy"]: row for row in whole}
    assert set(rows) == {"uniform", "alphalora", "mola"}
    assert rows["mola"]["options"] == {"shape": [8, 6, 4, 2]}
    one = rows["alphalora"]["against"]["uniform"]
    assert one["verdict"] == BETTER and one["seeds"] == 5
    assert one["low"] <= one["difference"] <= one["high"] < 0
    assert one["difference"] == pytest.approx(-0.03 / 1.102, abs=3e-4)
    assert rows["alphalora"]["against"]["lora"]["verdict"] == WORSE
    assert set(rows["uniform"]["against"]) == {"lora"}
    del done[HERE.cell("uniform", GRID[2], 3).key]
    names = [row["strategy"] for row in conclusions.findings(done)["plans"]]
    assert names == ["alphalora", "mola", "uniform", "eva"]
