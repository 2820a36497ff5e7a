"""The page's answer, its first sentence and the findings that the package takes along."""

import pytest

from benchmarks.study import conclusions, report
from benchmarks.study.cells import GRID
from benchmarks.study.compare import BETTER, WORSE
from benchmarks.study.verdicts import Verdicts
from helpers.study_lines import HERE, add, scatter

CLOSE = (0.001, -0.001, 0.0005, 0.0, 0.0)


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
