"""The page's figures follow from the lines of results, and from nothing else."""

import re

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from benchmarks.study import chart, conclusions, report, results
from benchmarks.study.cells import GRID, NAMED, Cell
from benchmarks.study.compare import MINIMUM, Runs, comparisons
from benchmarks.study.stats import pairs_for
from benchmarks.study.verdicts import Verdicts
from helpers.study_lines import HERE, add, line


def test_a_curve_shows_every_rate_with_the_best_in_bold(done):
    one = line("uniform-seg4", GRID[0], 0, 1.2)
    text = report.questions(done | {one["cell"]: one})
    assert "| `lora-r40` | 1.1000 | 1.0500 | **1.0000** | 1.0500 |" in text
    assert "| `uniform-seg4` | 1.2000 |  |  |  |" in text


def test_the_scale_of_the_losses_is_said(done):
    text = report.questions(done)
    assert "is 2.0000 before training, and 1.0020 after that of `lora-r40`, which has 1,008" in text
    assert f"0.5 % of it are {0.005 * 1.002:.4f}." in text


def test_a_method_without_a_curve_is_compared_but_has_none_shown(done):
    one = line("mola-2468", GRID[2], 0, 1.2)
    text = report.questions(done | {one["cell"]: one})
    (row,) = [row for row in text.splitlines() if row.startswith("| `mola-2468` | `uniform` |")]
    assert f"| {GRID[2]:g} | 1 | 1.2000 |" in row
    assert "| `mola-2468` |  |" not in text and "**1.2000**" not in text


def test_the_variance_says_what_can_be_seen(done):
    text = report.pilot(done)
    deviation = np.std([1.1, 1.101, 1.102, 1.103, 1.104], ddof=1)
    assert f"standard deviation {deviation:.5f} (0.14 %)" in text
    needed = pairs_for(2**0.5 * deviation, MINIMUM * 1.102)
    assert f"takes **{needed} seeds**" in text


def test_a_variance_that_is_not_complete_is_said_to_be_so(done):
    del done[HERE.cell("uniform", GRID[2], 4).key]
    assert "4 of 5 seeds have been run." in report.pilot(done)
    del done[HERE.cell("uniform", GRID[3], 0).key]
    assert "The curve of `uniform` is not complete" in report.pilot(done)


def test_methods_are_compared_pair_by_pair(done):
    pairs = [("lora-r40", "uniform"), ("uniform", "uniform")]
    (found,) = comparisons(HERE, pairs, done).values()
    own = dict(zip(report.COMPARED, found.row(), strict=True))
    assert own["method"] == "`lora-r40`" and own["against"] == "`uniform`"
    assert own["seeds"] == "5" and own["better on tasks"] == ""
    assert own["difference"] == "-9.07 %"  # 0.1 of 1.102
    assert own["held-out loss"] == "1.0020"


def test_plans_are_compared_with_their_controls_and_shapes_with_an_equal_lora(done):
    for method, loss in (("alphalora-hill", 1.2), ("alphalora-hill-shuffled", 1.0)):
        add(done, method, loss)
    add(done, "lora-equal", 1.0)
    text = report.questions(done)
    controls = text.partition("Against their controls:")[2]
    assert "| `alphalora-hill` | `alphalora-hill-shuffled` |" in controls
    assert "+19.96 %" in controls  # 0.2 of 1.002
    assert "`alphalora-hill-opposite` |" not in controls
    equals = text.partition("as many parameters:")[2].partition("Allocation")[0]
    assert "| `uniform` | `lora-equal` |" in equals and "+9.98 %" in equals


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"recipe": {"batch": 9}}, "recipes"), ({"digest": "11ff"}, "rows")],
)
def test_runs_of_other_rows_or_another_recipe_are_not_compared(done, changes, what):
    add(done, "dense", 1.0, **changes)
    with pytest.raises(ValueError, match=f"dense/.*and .*uniform/.*: their {what} differ"):
        comparisons(HERE, [("dense", "uniform")], done)


def test_tasks_are_counted_on_which_a_method_is_the_better_one(done):
    add(done, "dense", 1.0)
    for key, one in done.items():
        sums, words = (1.5, 1.3) if "/dense/" in key else (1.4, 1.4)
        own = {"gsm8k": one["held_out"]["loss"], "sums": sums, "words": words}
        one["held_out"]["by_task"] = own
    (found,) = comparisons(HERE, [("dense", "uniform")], done).values()
    row = dict(zip(report.COMPARED, found.row(), strict=True))
    assert row["better on tasks"] == "2 of 3"
    own = [sum([1.0 + 0.001 * s + 0.0005 * (-1) ** s * (s > 0), 1.5, 1.3]) / 3 for s in range(5)]
    other = [one + 0.1 / 3 for one in own]
    apart = [a - b for a, b in zip(own, other, strict=True)]
    assert found.of_tasks[0] == pytest.approx(np.mean(apart) / np.mean(other), abs=3e-4)
    assert found.of_tasks[1] <= found.of_tasks[0] <= found.of_tasks[2]
    assert row["mean of tasks"].startswith(f"{100 * found.of_tasks[0]:+.2f} % (")
    assert (
        Verdicts(HERE, done).sentence(("dense", "uniform")).count("if all tasks count the same")
        == 1
    )


def test_the_task_that_has_most_of_the_loss_is_named():
    """From lines of the study itself, by the losses of its rows and by those of its tasks."""
    done = results.read()
    bbh = next(one for one in results.settings(done) if one.data == "bbh" and one.device != "cpu")
    text = "\n".join(report._scale(bbh, done))
    task, share = re.search(r"`(\w+)` alone has (\d+) % of the loss", text).groups()
    lines = Runs(bbh, "lora-r40", done).lines.values()
    number = len(next(iter(lines))["held_out"]["by_task"])
    labels = np.reshape(next(iter(lines))["held_out"]["labels"], (number, -1)).sum(1)
    losses = np.mean([list(one["held_out"]["by_task"].values()) for one in lines], 0) * labels
    assert list(next(iter(lines))["held_out"]["by_task"])[losses.argmax()] == task
    assert f"{100 * losses.max() / losses.sum():.0f}" == share
    gsm8k = "\n".join(report._scale(results.main(done), done))
    assert "0.5 % of it" in gsm8k and "alone has" not in gsm8k


def test_routers_and_answers_are_shown(done):
    text = report.questions(done)
    routers = text.partition("Routers:")[2]
    assert "| `uniform` | 0.500 | 25.0 % |" in routers and "`lora-r40` |" not in routers
    one = done[HERE.cell("uniform", GRID[2], 0).key]
    one["answered"] = {"rows": 50, "right": 5, "interval": [0.0434, 0.2136], "by": "likelihood"}
    assert "| 5 of 50 (4 to 21 %) |" in report.cells(done)


def test_p_values_are_corrected_for_the_rows_of_a_table(done):
    add(done, "dense", 1.101)
    add(done, "share-a", 1.102)
    found = comparisons(HERE, [("dense", "uniform"), ("share-a", "uniform")], done).values()
    plain = min(one.p for one in found)
    assert min(one.corrected for one in found) == pytest.approx(2 * plain)


def test_a_comparison_says_how_many_seeds_the_least_difference_takes(done):
    add(done, "dense", 1.101)
    (found,) = comparisons(HERE, [("dense", "uniform")], done).values()
    apart = [0.001, 0.0005, 0.0015, 0.0005, 0.0015]
    assert found.needed == str(pairs_for(np.std(apart, ddof=1), MINIMUM * 1.102))
    assert dict(zip(report.COMPARED, found.row(), strict=True))["seeds for 0.5 %"] == "3"
    row = dict(zip(report.COMPARED, found.row(), strict=True))
    draws = np.random.default_rng(0).normal(0.00551, np.std(apart, ddof=1), (20_000, 5))
    right = (ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean()
    assert int(row["chance for 0.5 %"].removesuffix(" %")) == pytest.approx(100 * right, abs=2)
    for seed in range(1, 5):
        del done[HERE.cell("dense", GRID[2], seed).key]
    (found,) = comparisons(HERE, [("dense", "uniform")], done).values()
    assert found.needed == "" and found.chance is None and len(found.seeds) == 1
    row = dict(zip(report.COMPARED, found.row(), strict=True))
    assert row["95 % interval"] == "" and row["difference"], "of one seed it speaks of rows alone"


def test_every_cell_is_shown(done):
    text = report.cells(done)
    assert re.findall(r"^\| `([^`]+)` \|", text, re.M) == list(done)
    assert report.cells({}) == report.questions({}) == report.pilot({}) == report.NOTHING
    assert report.precision({}) == report.NOTHING


def test_cells_run_in_two_precisions_stand_side_by_side(done):
    assert report.precision(done) == report.NOTHING
    key = HERE.cell("uniform", GRID[2], 0).key
    twin = done[key] | {"device": "cpu-bf16", "held_out": {"loss": 1.1011}}
    text = report.precision({**done, key.replace("cpu/", "cpu-bf16/", 1): twin})
    assert text.splitlines()[2:] == [
        f"| `smollm2/gsm8k/320/uniform/{GRID[2]:g}/0` | 1.10000 | 1.10110 | 0.100 % |"
    ]


def test_the_page_says_what_every_method_is():
    """Each method is in the page's table: by its name, or by its plan's and its ending."""
    page = (report.PICTURES.parent / "study.md").read_text()
    table = page.partition("## The methods")[2].partition("## Protocol")[0]
    for name in NAMED:
        plan, _, end = name.rpartition("-")
        ending = end in ("opposite", "shuffled", "rank", "seg4") and f"*plan*`-{end}`" in table
        equal = name.startswith("lora-equal-") and f"`-{name.removeprefix('lora-equal-')}`" in table
        assert f"`{name}`" in table or ending or equal, name


def test_a_picture_has_a_point_for_each_loss(done):
    found = report.pictures(done)
    content = found["study-pilot-cpu.svg"]
    assert content.count("<circle") == 2 * len(GRID)
    assert content == chart.curves(
        "Held-out loss per label, SmolLM2-135M-Instruct, 320 rows of gsm8k, cpu, seed 0",
        {m: report.losses(HERE, m, done) for m in ("lora-r40", "uniform")},
    )


def test_a_picture_has_an_interval_for_each_pair_that_has_all_seeds(done):
    add(done, "dense", 1.2)
    add(done, "eva", 1.1)
    del done[HERE.cell("eva", GRID[2], 4).key]
    content = report.pictures(done)["study-differences-cpu.svg"]
    assert content.count("<circle") == 3  # the LoRA and the mixture, and dense beside both
    assert "dense / uniform" in content and "eva" not in content
    assert "(pictures/study-differences-cpu.svg)" in report.questions(done)


def test_the_pages_pictures_are_those_of_the_results(tmp_path):
    report.write_pictures(folder=tmp_path)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in report.PICTURES.glob("study-*.svg")}
    assert drawn == kept, "run `python -m benchmarks.study report`"


def test_the_package_says_of_the_study_what_the_results_say(tmp_path):
    conclusions.write_findings(file=tmp_path / "study.json")
    written = (tmp_path / "study.json").read_text()
    assert written == conclusions.FINDINGS.read_text(), "run `python -m benchmarks.study report`"


def test_results_name_known_methods_and_their_own_cells():
    from benchmarks.study.methods import METHODS

    for key, found in results.read().items():
        assert Cell.of(found).key == key
        assert found["method"] in METHODS
