"""The study's command: it loses one cell at most, and a cell gives the same digits again."""

import json
import os
import signal
import time
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.study.__main__ import main
from helpers.forks import finished, fork
from helpers.studying import run, save_base, save_data

KEEP = ("held_out", "others", "routers", "train_losses", "balance_loss", "parameters", "answered")


@pytest.fixture
def benchmark(tmp_path):
    """Makes a folder with a tiny base and data, and runs the study there in a child."""
    import_module("benchmarks.study.run")  # once, for all children

    def make(name):
        save_base(tmp_path / name / "base")
        save_data(tmp_path / name / "data")
        return tmp_path / name

    def start(folder, *arguments, **options):
        return fork(partial(run, **options), folder, *arguments, output=folder / "log.txt")

    return make, start


def read(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_run_that_is_killed_loses_one_cell_at_most(benchmark):
    """And a cell whose line is taken out of the results is run again, to the same digits."""
    make, start = benchmark
    killed, whole = make("killed"), make("whole")
    arguments = ["run", "--hours", "1", "--threads", "1", "--answers", "2", "--data"]
    child, log = start(killed, *arguments, str(killed / "data")), killed / "log.txt"
    while log.read_text().count("...\n") < 3:  # killed at the start of the third cell
        assert child.is_alive(), log.read_text()
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    first = read(killed)
    assert len(first) == 2
    for folder in (killed, whole):
        child = start(folder, *arguments, str(folder / "data"))
        assert finished(child, folder / "log.txt").endswith("no cell is left\n")
    lines, others = read(killed), read(whole)
    assert lines[:2] == first
    keys = [line["cell"] for line in lines]
    assert len(keys) == len(set(keys)) and keys == [line["cell"] for line in others]
    assert {line["method"] for line in lines} == {"untrained", "lora-r8", "uniform"}
    assert {line["seed"] for line in lines} == {0, 1}, "those of both methods"
    for line, other in zip(lines, others, strict=True):
        assert {k: line.get(k) for k in KEEP} == {k: other.get(k) for k in KEEP}
    assert len(keys) == 5
    for line in lines:
        assert line["machine"] and line["versions"]["torch"] and line["recipe"]["batch"]
        assert line["commit"] or not (Path(__file__).parents[3] / ".git").exists()
        assert sum(line["seconds"].values()) > 0 and line["threads"] == 1
    assert len({line["digest"] for line in lines}) == 1
    (key,) = [line["cell"] for line in others if (line["method"], line["seed"]) == ("uniform", 0)]
    kept = [line for line in (whole / "results.jsonl").open() if f'"cell": "{key}"' not in line]
    (whole / "results.jsonl").write_text("".join(kept))
    assert len(kept) == 4
    child = start(whole, *arguments, str(whole / "data"))
    assert finished(child, whole / "log.txt").endswith("no cell is left\n")
    (once,), (again,) = (
        [line for line in own if line["cell"] == key] for own in (others, read(whole))
    )
    assert {k: once.get(k) for k in KEEP} == {k: again.get(k) for k in KEEP}
    shown = finished(start(killed, "list"), log)
    assert shown.endswith(f"{len(keys)} of {len(keys)} cells are done\n")


def test_what_fails_or_cannot_be_built_is_left_and_the_rest_is_run(benchmark):
    make, start = benchmark
    folder = make("failing")
    arguments = ["run", "--hours", "1", "--threads", "1", "--answers", "2", "--data"]
    child = start(folder, *arguments, str(folder / "data"), methods=("broken", "absent", "lora-r8"))
    said = finished(child, folder / "log.txt")
    assert "RuntimeError: it breaks" in said and said.count("failed cpu") == 1
    assert said.count("skipped absent: it is not installed") == 1
    assert said.endswith("no cell is left\n")
    assert {line["method"] for line in read(folder)} == {"untrained", "lora-r8"}


def test_unknown_cells_are_refused(tmp_path):
    arguments = ["--results", str(tmp_path / "results.jsonl"), "--cells", "cpu/nobody/*"]
    with pytest.raises(SystemExit, match=r"cpu/nobody/\*: no cell is called so"):
        main(["list", *arguments])


@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_data_is_named_before_anything_is_trained(tmp_path, split):
    save_data(tmp_path)
    (tmp_path / f"gsm8k_{split}.jsonl").unlink()
    with pytest.raises(SystemExit, match=f"gsm8k_{split}.jsonl is not there: .* --data"):
        main(["run", "--data", str(tmp_path), "--results", str(tmp_path / "results.jsonl")])
