"""Benchmarks run, for a step or two of a tiny model: what they print is not looked at for speed."""

import json
import multiprocessing
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from helpers.forks import finished, fork

TINY = ["--model", "tiny", "--repeats", "1"]
SHORT = ["--batch", "1", "--length", "8"]
# Mixlora has a test of its own: axolotl's imports take longer than all the rest.
STEPS = ["none", "lora", "lora-equal", "experts", "experts-plain", "uneven", "dispatch"]
STEPS += ["experts-ffn"]
ROWS = {
    "training_step": (
        [*TINY, *SHORT, "--contestants", "plan", "experts-triton", *STEPS],
        ["no", "no", "trained", *STEPS],
    ),
    "decode": (
        [*TINY, "--steps", "2", "--batch", "1", "--prompt", "4"],
        ["batch", "ms", "no", "LoRA", "AlphaLoRA"],
    ),
    "startup": (
        TINY,
        ["s", *4 * ["wrap"], *2 * ["wrap,"], *4 * ["save"], *6 * ["load"], "plan"],
    ),
    "sensitivity": (
        [*TINY, "--steps", "2", "--tokens", "8", "--dtype", "fp32"],
        2 * ["fp32,", "LoRA", "peak", "peak", "seconds"],
    ),
}


@pytest.fixture
def benchmark(monkeypatch, capsys):
    """Run a benchmark's command here; returns the lines that it prints."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        import_module(f"benchmarks.{name}").main()
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def forked(monkeypatch, tmp_path):
    """Lets the children of sensitivity's benchmark be forks, which need not import all anew."""
    from benchmarks import sensitivity

    def command(arguments):
        sys.argv = ["sensitivity", *arguments]
        sensitivity.main()

    def in_fork(module, *arguments, **_):
        assert module == "benchmarks.sensitivity"
        log = tmp_path / "child.txt"
        return json.loads(finished(fork(command, arguments, output=log), log).splitlines()[-1])

    monkeypatch.setattr(sensitivity, "in_fresh_process", in_fork)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("name", ROWS)
def test_it_prints_a_row_for_each_measurement(name, benchmark):
    arguments, rows = ROWS[name]
    lines = [line for line in benchmark(name, *arguments) if line]
    assert [line.split()[0] for line in lines[-len(rows) :]] == rows
    assert not multiprocessing.active_children()


def columns(line):
    """The numbers of a row of a training step's table: a range is three."""
    return line.replace("(", "").replace(")", "").replace("to ", "").replace(",", "").split()[1:]


def test_a_training_step_says_what_it_measured_and_who_is_not_there(benchmark):
    names = ["none", "lora-equal", "experts", "plan"]
    two = ["--repeats", "2", "--dtype", "bf16", "--checkpointing"]
    lines = benchmark("training_step", *TINY, *SHORT, *two, "--contestants", *names)
    assert any("no plan:" in line and "`uneven` stands in" in line for line in lines)
    none, lora, experts = lines[-3:]
    assert columns(none)[0] == "0" and columns(none)[8] == "-"
    assert columns(lora)[5:8] == ["1.000", "1.000", "1.000"]
    assert int(columns(experts)[0]) > int(columns(lora)[0])
    assert int(columns(experts)[12]) > 100 and columns(experts)[13] == "-"


def test_the_slope_along_an_axis_is_that_of_what_the_adapter_adds(benchmark, monkeypatch):
    def steps(names, options, base):
        facts = {"parameters": 1, "kept_bytes": 1.0, "ops": 1, "peak_bytes": None}
        more = {"none": 0.0, "experts": 0.5 + 0.2 * options.experts}
        return dict.fromkeys(names, facts), {}, {name: [2.0 + more[name]] for name in names}

    monkeypatch.setattr("benchmarks.training_step.take_steps", steps)
    asked = ["--contestants", "none", "experts", "--along", "experts", "1", "2", "4"]
    lines = benchmark("training_step", *TINY, *asked)
    assert lines[-1].startswith("experts: 10.000 (10.000 to 10.000) % of the first step")
    assert [line.split()[6] for line in lines if " experts of rank" in line] == ["1", "2", "4"]
    for wrong in (["experts", "1"], ["width", "1", "2"], ["rank", "1", "two"]):
        with pytest.raises(SystemExit):
            benchmark("training_step", *TINY, "--along", *wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.usefixtures("fresh_process")
def test_what_a_gpu_would_show_needs_one_and_runs_the_same_way_on_a_tiny_model(capfd, monkeypatch):
    from benchmarks import gpu

    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "needs a CUDA GPU" in capfd.readouterr().err
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--model", "tiny"])
    decode = gpu.commands("tiny", "tiny", "cpu")["a decode step"]
    some = {"a decode step": decode, "fails": ["nothing"]}
    monkeypatch.setattr(gpu, "commands", lambda *_: some)
    with pytest.raises(SystemExit, match="1"):
        gpu.main()
    out = capfd.readouterr().out
    assert "## a decode step" in out and "ms a step" in out
    assert "not measured: fails: exit status 1" in out
    monkeypatch.setattr(gpu, "commands", lambda *_: {"slow": ["http.server", "0"]})
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--minutes", "0.01"])
    with pytest.raises(SystemExit, match="1"):
        gpu.main()
    assert "not measured: slow: the 0.01 minutes were over" in capfd.readouterr().out


def test_there_are_ten_questions_at_most():
    """A file that can be run answers one."""
    folder = Path(__file__).parents[2] / "benchmarks"
    run = [path.name for path in folder.glob("*.py") if "__main__" in path.read_text()]
    assert 5 < len(run) <= 10
