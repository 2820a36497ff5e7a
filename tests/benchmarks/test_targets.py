"""The table of targets holds what was measured, and says why where nothing was."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from importlib import import_module

import pytest
import torch

from axolotl_alphalora.quickstart.files import QuickstartError
from benchmarks import targets
from benchmarks.common import saved_by, summary
from benchmarks.targets import TARGETS, Target, judged, over_mixlora, overhead


def step_results(**contestants):
    """Results of a training step: contestant to what a step takes more than `none`."""
    return {
        "absent": {"mixlora": "axolotl cannot be imported"},
        "contestants": {
            name: {"more_than_none": summary(more), "seconds": summary([10 + m for m in more])}
            for name, more in contestants.items()
        },
    }


def test_the_overhead_is_compared_turn_by_turn():
    results = step_results(experts=[1.0, 2.0, 6.0], dispatch=[4.0, 4.0, 8.0])
    assert overhead(results)["values"] == [0.25, 0.5, 0.75]


@pytest.mark.parametrize(("median", "verdict"), [(1.0, "met"), (1.05, "met"), (1.051, "not met")])
def test_a_target_is_met_up_to_its_limit(median, verdict):
    target = Target("step", 1.05, "run", lambda results: results["values"])
    results = {"run": {"values": summary([median - 0.1, median, median + 0.5])}}
    shown = f"{median:.3f} ({median - 0.1:.3f} to {median + 0.5:.3f})"
    assert judged(target, results, {}) == ["step", "≤ 1.05", shown, verdict]


def test_what_was_not_measured_is_not_judged_and_has_the_reason():
    target = Target("step", 0.6, "run", over_mixlora)
    assert judged(target, {}, {"run": "needs a CUDA GPU"})[2:] == [
        "-",
        "not measured here: needs a CUDA GPU",
    ]
    found = {"run": step_results(**{"experts-ffn": [1.0]})}
    assert judged(target, found, {})[2:] == [
        "-",
        "not measured here: no mixlora: axolotl cannot be imported",
    ]


def test_a_fresh_process_leaves_its_numbers(monkeypatch, capfd, tmp_path):
    (tmp_path / "child.py").write_text(
        "import json, os, pathlib, sys\n"
        "print('a table')\n"
        "if sys.argv[1] == 'fails': sys.exit(3)\n"
        "found = [os.getpid(), *sys.argv[1:3]]\n"
        "pathlib.Path(sys.argv[-1]).write_text(json.dumps(found))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process, *arguments = saved_by("child", "--model", "tiny")
    assert process != os.getpid()
    assert arguments == ["--model", "tiny"]
    assert capfd.readouterr() == ("", "a table\n")
    with pytest.raises(subprocess.CalledProcessError):
        saved_by("child", "fails")


@pytest.mark.parametrize("error", [None, ImportError, QuickstartError])
def test_a_cpu_measures_smollm2_where_it_can_be_had(error, monkeypatch):
    def smollm2():
        if error is not None:
            raise error("not here")
        return "a/directory"

    monkeypatch.setattr(targets, "smollm2", smollm2)
    found = "135m" if error else "a/directory"
    assert targets.cpu_model(Namespace(model=None, quick=False)) == found
    assert targets.cpu_model(Namespace(model=None, quick=True)) == "tiny"
    assert targets.cpu_model(Namespace(model="my/own", quick=False)) == "my/own"


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Run the measurements in this process; returns the names of those that ran."""
    ran = []

    def measure(module, *arguments):
        ran.append(module.removeprefix("benchmarks."))
        file = tmp_path / "child.json"
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [module, *arguments, "--json", str(file)])
            import_module(module).main()
        return json.loads(file.read_text())

    monkeypatch.setattr(targets, "saved_by", measure)
    return ran


@pytest.mark.skipif(torch.cuda.is_available(), reason="the rows are those of a CPU")
def test_one_command_prints_a_row_for_each_target(here, monkeypatch, capsys, tmp_path):
    def table(*more):
        monkeypatch.setattr(sys, "argv", ["targets", "--quick", *more])
        targets.main()
        lines = capsys.readouterr().out.splitlines()
        start = lines.index("| --- | --- | --- | --- |") + 1
        return [line.strip("| ").split(" | ") for line in lines[start : start + len(TARGETS)]]

    kept = ["--results", str(tmp_path / "kept")]
    rows = table(*kept)
    assert here == [*3 * ["training_step"], "decode", "startup"]
    assert [row[0] for row in rows] == [target.text for target in TARGETS]
    for target, row in zip(TARGETS, rows, strict=True):
        if target.run in targets.ON_GPU:
            assert row[2:] == ["-", "not measured here: needs a CUDA GPU"]
        elif "mixlora" not in target.text:
            float(row[2].split()[0])
            assert row[3] in ("met", "not met", "no number asked for")
    # From the kept numbers the same table is made again; those of another command are not used.
    assert table(*kept, "--only", "startup") == rows
    assert len(here) == 5
    other = table(*kept, "--only", "startup", "--repeats", "2")
    assert here[5:] == ["startup"]
    assert other[0][2:] == ["-", "not measured here: left out by --only"]
