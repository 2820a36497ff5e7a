"""The study's command: it loses one cell at most, and a cell gives the same digits again."""

import json
import os
import signal
import subprocess
import sys

import pytest

import generate
from benchmarks.study.__main__ import main
from helpers.studying import save_base, save_data

KEEP = ("held_out", "others", "routers", "train_losses", "balance_loss", "parameters", "answered")


def command(folder, *arguments):
    return [sys.executable, "-m", "helpers.studying", str(folder), *arguments]


def environment():
    paths = [str(generate.ROOT), str(generate.ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """Makes a folder with a tiny base and data, and runs the study there."""

    def start(folder, *arguments, **options):
        words = command(folder, *arguments)
        return subprocess.Popen(words, env=environment(), stdout=-1, text=True, **options)

    def make(name):
        folder = tmp_path_factory.mktemp(name)
        save_base(folder / "base")
        save_data(folder / "data")
        return folder

    return make, start


def read(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_run_that_is_killed_loses_one_cell_at_most(benchmark):
    make, start = benchmark
    arguments = ["run", "--hours", "1", "--threads", "1", "--answers", "2", "--data"]
    killed, whole = make("killed"), make("whole")
    run = start(killed, *arguments, str(killed / "data"))
    started = 0
    for line in run.stdout:  # killed at the start of the third cell
        started += line.endswith("...\n")
        if started == 3:
            break
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    first = read(killed)
    assert len(first) == 2
    for folder in (killed, whole):
        output, _ = start(folder, *arguments, str(folder / "data")).communicate()
        assert output.endswith("no cell is left\n")
    lines, others = read(killed), read(whole)
    assert lines[:2] == first
    keys = [line["cell"] for line in lines]
    assert len(keys) == len(set(keys)) and keys == [line["cell"] for line in others]
    assert {line["method"] for line in lines} == {"untrained", "lora-r8", "uniform"}
    assert {line["seed"] for line in lines} == {0, 1}
    for line, other in zip(lines, others, strict=True):
        assert {k: line.get(k) for k in KEEP} == {k: other.get(k) for k in KEEP}
    shown, _ = start(killed, "list").communicate()
    assert shown.endswith(f"{len(keys)} of {len(keys)} cells are done\n")


def test_unknown_cells_are_refused(tmp_path):
    arguments = ["--results", str(tmp_path / "results.jsonl"), "--cells", "cpu/nobody/*"]
    with pytest.raises(SystemExit, match=r"cpu/nobody/\*: no cell is called so"):
        main(["list", *arguments])


def test_missing_data_is_named_before_anything_is_trained(tmp_path):
    with pytest.raises(SystemExit, match="gsm8k_train.jsonl is not there: .* --data"):
        main(["run", "--data", str(tmp_path), "--results", str(tmp_path / "results.jsonl")])
