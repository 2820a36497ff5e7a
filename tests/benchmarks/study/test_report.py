"""The page's figures follow from the lines of results, and from nothing else."""

import re

import numpy as np
import pytest

from benchmarks.study import chart, report, results
from benchmarks.study.cells import GRID, Setting
from benchmarks.study.compare import MINIMUM, comparisons
from benchmarks.study.stats import pairs_for

HERE = Setting()
LABELS = [10, 20, 30, 40]


def line(method, rate, seed, loss):
    """What is known of a cell with that loss per label."""
    cell = HERE.cell(method, rate, seed)
    wave = np.random.default_rng(seed).normal(0, 0.1, len(LABELS))
    rows = loss * np.array(LABELS) + (wave - wave.mean())
    return {
        "cell": cell.key,
        **cell.as_dict(),
        "parameters": 1000 + len(method),
        "held_out": {
            "loss": loss,
            "by_task": {"gsm8k": loss},
            "rows": list(rows),
            "labels": LABELS,
        },
        "routers": {"router_entropy": 0.5, "dead_experts": 0.25} if method == "uniform" else None,
        "others": {"bbh": 3.0 + rate, "text": 4.0 + rate},
        "answered": {"rows": 0, "why": "not asked for"},
        "seconds": {"train": 12.0},
        "commit": "abc",
    }


@pytest.fixture
def done():
    """Two curves, and five seeds of each method: the mixture is worse by a tenth."""
    found = [line("untrained", 0.0, 0, 2.0)]
    for method, least in (("lora-r40", 1.0), ("uniform", 1.1)):
        found += [line(method, r, 0, least + 0.05 * abs(i - 2)) for i, r in enumerate(GRID)]
        found += [line(method, GRID[2], seed, least + 0.001 * seed) for seed in range(1, 5)]
    return {one["cell"]: one for one in found}


def test_a_curve_shows_every_rate_with_the_best_in_bold(done):
    text = report.pilot(done)
    assert "| `lora-r40` | 1.1000 | 1.0500 | **1.0000** | 1.0500 | 1.1000 |" in text
    assert "| `uniform-seg4` |  |  |  |  |  |" in text


def test_the_variance_says_what_can_be_seen(done):
    text = report.pilot(done)
    deviation = np.std([1.1, 1.101, 1.102, 1.103, 1.104], ddof=1)
    assert f"standard deviation {deviation:.5f} (0.14 %)" in text
    needed = pairs_for(2**0.5 * deviation, MINIMUM * 1.102)
    assert f"takes **{needed} seeds**" in text


def test_a_variance_that_is_not_complete_is_said_to_be_so(done):
    del done[HERE.cell("uniform", GRID[2], 4).key]
    assert "4 of 5 seeds have been run." in report.pilot(done)
    del done[HERE.cell("uniform", GRID[4], 0).key]
    assert "The curve of `uniform` is not complete" in report.pilot(done)


def test_methods_are_compared_pair_by_pair(done):
    rows = comparisons(HERE, ["lora-r40", "uniform"], "uniform", done)
    own = dict(zip(report.COMPARED, rows[0], strict=True))
    assert own["method"] == "`lora-r40`" and own["seeds"] == "5"
    assert own["difference"] == "-9.07 %"  # 0.1 of 1.102
    assert own["held-out loss"] == "1.0020"
    assert own["text"] == f"+{GRID[2]:.4f}"
    assert dict(zip(report.COMPARED, rows[1], strict=True))["difference"] == ""


def test_p_values_are_corrected_for_the_rows_of_a_table(done):
    for shift, method in ((0.001, "dense"), (0.002, "share-a")):
        for index, rate in enumerate(GRID):
            one = line(method, rate, 0, 1.1 + shift + 0.05 * abs(index - 2))
            done[one["cell"]] = one
        for seed in range(1, 5):
            noise = 0.0005 * (-1) ** seed
            one = line(method, GRID[2], seed, 1.1 + shift + noise + 0.001 * seed)
            done[one["cell"]] = one
    rows = comparisons(HERE, ["dense", "share-a"], "uniform", done)
    found = [dict(zip(report.COMPARED, row, strict=True)) for row in rows]
    plain = [float(row["p"]) for row in found]
    corrected = [float(row["p, Holm"]) for row in found]
    assert min(corrected) == pytest.approx(2 * min(plain), abs=2e-3)


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


def test_what_was_not_run_is_named(done):
    assert "Not run here: `uniform-seg4`, " in report.questions(done)


def test_a_picture_has_a_point_for_each_loss(done):
    (content,) = report.pictures(done).values()
    assert content.count("<circle") == 2 * len(GRID)
    assert content == chart.curves(
        "Held-out loss per label, smollm2, 320 rows of gsm8k, cpu, seed 0",
        {m: report.losses(HERE, m, done) for m in ("lora-r40", "uniform")},
    )


def test_the_pages_pictures_are_those_of_the_results(tmp_path):
    report.write_pictures(folder=tmp_path)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in report.PICTURES.glob("study-*.svg")}
    assert drawn == kept, "run `python -m benchmarks.study report`"


def test_results_name_known_methods_and_their_own_cells():
    from benchmarks.study.methods import METHODS

    for key, found in results.read().items():
        assert report.Cell.of(found).key == key
        assert found["method"] in METHODS
