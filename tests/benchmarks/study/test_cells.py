"""The study's table: the pilot first, and each method at the best rate of its shape's curve."""

import pytest

from benchmarks.study import cells
from benchmarks.study.cells import GRID, Cell, Setting, best_rate, curve, table
from benchmarks.study.methods import METHODS

HERE = Setting()
LOSSES = (3.0, 2.0, 1.0, 2.0)
"""Of a curve that is best at GRID[2]."""


def results(method, losses, seed=0):
    """Lines of a method's curve: learning rate to loss."""
    found = {}
    for rate, loss in losses.items():
        cell = HERE.cell(method, rate, seed)
        found[cell.key] = {**cell.as_dict(), "held_out": {"loss": loss}}
    return found


def test_the_methods_are_those_of_the_table_and_of_its_comparisons():
    named = {name for group in cells.GROUPS for name in group}
    assert named | {cells.UNTRAINED} == set(METHODS)
    assert {
        name for pair in (*cells.CONTROLS, *cells.EQUALS, *cells.FEWER) for name in pair
    } <= named
    assert {*cells.PILOT, cells.VARIANCE_OF} <= named
    assert {name for pair in cells.AGAIN for name in pair} == set(cells.PILOT)
    assert not set(cells.FRESH) & set(cells.SEEDS)
    assert all("/" not in name for name in METHODS)


def test_every_scored_plan_has_its_controls():
    for plan in ("alphalora-hill", "mola-2468", "sensitivity", "eva"):
        controls = [other for own, other in cells.CONTROLS if own == plan]
        assert len(controls) >= 3 and f"{plan}-rank" in controls, plan


def test_a_router_of_low_rank_is_also_run_on_the_quickstarts_data():
    run = {cell.method for cell in table({}) if cell.data == "skills"}
    assert run == {cells.UNTRAINED, *cells.SKILLS} - set(cells.RATES)
    assert "router-rank16" in run


def test_a_methods_seeds_follow_its_curve():
    done = results("lora-r40", dict(zip(GRID, LOSSES, strict=True)))
    methods = [cell.method for cell in table(done) if (cell.data, cell.rows) == ("gsm8k", 320)]
    whole = methods[1 + 3 * len(GRID) :]  # after the pilot
    again = 4 + len(cells.FRESH)
    assert whole[:again] == ["lora-r40"] * again and whole[again] == cells.SHAPES[3]


def test_the_pilots_curves_come_first():
    first = table({})[: 1 + 3 * len(GRID)]
    assert first[0].method == "untrained"
    assert [cell.method for cell in first[1 :: len(GRID)]] == [
        "lora-r40",
        "uniform",
        "uniform-seg4",
    ]
    assert [cell.rate for cell in first[1 : 1 + len(GRID)]] == list(GRID)
    assert {(cell.data, cell.rows, cell.seed) for cell in first} == {("gsm8k", 320, 0)}


def test_keys_name_their_cells():
    known = table({})
    assert len({cell.key for cell in known}) == len(known)
    line = {**known[3].as_dict(), "more": 1}
    assert Cell.of(line) == known[3]
    assert known[3].key == f"cpu/smollm2/gsm8k/320/lora-r40/{GRID[2]:g}/0"


def test_seeds_are_known_once_the_curve_is_done():
    losses = dict(zip(GRID, LOSSES, strict=True))
    done = results("uniform", losses)
    *_, last = done
    assert best_rate(HERE, "uniform", done) == GRID[2]
    seeds = [cell for cell in table(done) if cell.method == "uniform" and cell.seed]
    assert {cell.rate for cell in seeds if (cell.data, cell.rows) == ("gsm8k", 320)} == {GRID[2]}
    assert [cell.seed for cell in seeds] == [1, 2, 3, 4, *cells.FRESH]
    del done[last]
    assert best_rate(HERE, "uniform", done) is None
    assert not [cell for cell in table(done) if cell.seed]


def test_a_method_that_differs_in_its_plan_alone_takes_the_rate_of_its_shape():
    named = {name for group in cells.GROUPS for name in group}
    assert {*cells.RATES, *cells.RATES.values()} <= named
    plans = {name for name in (*cells.ALLOCATIONS, *cells.CUT) if not name.endswith("-rank")}
    assert plans <= set(cells.RATES)
    checked = [cell.rate for cell in table({}) if cell.method == cells.CHECKED]
    assert checked == list(GRID) and cells.CHECKED in plans
    assert curve(HERE, "eva-opposite", {}) == []
    assert best_rate(HERE, "eva-opposite", {}) is None
    done = results("uniform", dict(zip(GRID, LOSSES, strict=True)))
    assert best_rate(HERE, "eva-opposite", done) == GRID[2]
    own = [cell for cell in table(done) if cell.method == "eva-opposite"]
    assert [(cell.data, cell.rate, cell.seed) for cell in own] == [
        ("gsm8k", GRID[2], seed) for seed in cells.SEEDS
    ]


@pytest.mark.parametrize(("end", "factor"), [(0, 0.5), (-1, 2.0)])
def test_a_curve_goes_on_where_its_best_is_at_an_end(end, factor):
    losses = dict.fromkeys(GRID, 2.0)
    rate = GRID[end]
    losses[rate] = 1.0
    assert curve(HERE, "uniform", results("uniform", losses)) == [*GRID, rate * factor]
    assert best_rate(HERE, "uniform", results("uniform", losses)) is None
    losses[rate * factor] = 0.5
    losses[rate * factor**2] = 0.4  # no further than this
    done = results("uniform", losses)
    assert curve(HERE, "uniform", done) == [*GRID, rate * factor, rate * factor**2]
    assert best_rate(HERE, "uniform", done) == rate * factor**2


def test_other_seeds_do_not_choose_the_rate():
    done = results("uniform", dict(zip(GRID, LOSSES, strict=True)))
    done |= results("uniform", {GRID[0]: 0.1}, seed=1)
    assert best_rate(HERE, "uniform", done) == GRID[2]
