"""Benchmarks run, for a step or two of a tiny model: what they print is not looked at for speed."""

import json
import multiprocessing
import sys
from importlib import import_module

import pytest
import torch

TINY = ["--model", "tiny", "--repeats", "1"]
SHORT = ["--batch", "1", "--length", "8"]
POINTS = ["--experts-points", "1", "3", "--rank-points", "2", "4", "--length-points", "4", "8"]
# Mixlora has a test of its own: axolotl's imports take longer than all the rest.
STEPS = ["none", "lora", "lora-equal", "experts", "experts-plain", "uneven", "dense", "dispatch"]
STEPS += ["experts-ffn"]
COMMANDS = {
    "training_step": [*TINY, *SHORT, "--contestants", "plan", "experts-triton", *STEPS],
    "decode": [*TINY, "--steps", "2", "--batch", "1", "--prompt", "4"],
    "scaling": [*TINY, *SHORT, *POINTS],
    "startup": TINY,
    "memory_limit": ["--model", "tiny", "--device", "cpu", "--steps", "1", "--length", "8"],
}
ROWS = {
    "training_step": STEPS,
    "decode": ["no", "LoRA", "AlphaLoRA"],
    "scaling": ["length", *3 * ["4"], *3 * ["8"], *2 * ["slope"]],
    "startup": [*4 * ["wrap"], *2 * ["wrap,"], *4 * ["save"], *6 * ["load"], "plan"],
    "memory_limit": ["trained", "parameters", "experts", "losses", "s", "peak", "peak"],
}


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a benchmark's command here; returns the lines that it prints."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        import_module(f"benchmarks.{name}").main()
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_it_prints_a_row_for_each_measurement_and_writes_the_numbers(name, command, tmp_path):
    file = tmp_path / "results.json"
    lines = command(name, *COMMANDS[name], "--json", str(file))
    assert [line.split()[0] for line in lines[-len(ROWS[name]) :]] == ROWS[name]
    results = json.loads(file.read_text())
    assert results["benchmark"] == name
    assert results["settings"]["model"] == "tiny"
    assert results["machine"] in lines
    assert list(tmp_path.iterdir()) == [file]


def test_the_counting_of_router_decisions_is_timed(command):
    lines = command("router_statistics", "--model", "tiny", *SHORT, "--repeats", "2")
    assert lines[1].startswith("14 routers, 1 x 8 tokens, 2 pairs")
    starts = ["step", "step", "ratio:", "counting", "reading"]
    assert [line.split()[0] for line in lines[2:]] == starts


def test_a_training_step_says_what_it_measured_and_who_is_not_there(command, tmp_path):
    file = tmp_path / "results.json"
    names = ["none", "lora-equal", "experts", "plan"]
    two = ["--repeats", "2", "--dtype", "bf16", "--checkpointing"]
    lines = command(
        "training_step", *TINY, *SHORT, *two, "--contestants", *names, "--json", str(file)
    )
    results = json.loads(file.read_text())
    assert "`uneven` stands in" in results["absent"]["plan"]
    assert f"no plan: {results['absent']['plan']}" in lines
    assert list(results["contestants"]) == names[:3]
    for row in results["contestants"].values():
        seconds = row["seconds"]["values"]
        assert len(seconds) == 2
        assert row["tokens_per_second"]["values"] == pytest.approx([8 / s for s in seconds])
        assert row["ops"] > 100 and row["kept_bytes"] > 0
        assert row["peak_bytes"] is None and row["graph_breaks"] is None
    lora = results["contestants"]["lora-equal"]
    assert lora["over_lora_equal"]["values"] == [1.0, 1.0]
    assert results["contestants"]["none"]["more_than_none"]["values"] == [0.0, 0.0]


def test_graph_breaks_are_counted_where_they_are_asked_for(command, tmp_path):
    file = tmp_path / "results.json"
    asked = ["--contestants", "experts", "dispatch", "--compile-check", "--json", str(file)]
    command("training_step", *TINY, *SHORT, "--together", *asked)
    assert not multiprocessing.active_children()
    found = json.loads(file.read_text())["contestants"]
    assert found["experts"]["graph_breaks"] == 0
    assert found["dispatch"]["graph_breaks"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_trained_inside_a_limit(command, monkeypatch):
    monkeypatch.setattr("benchmarks.memory_limit.measure", None)
    (line,) = command("memory_limit")
    assert "needs a CUDA GPU" in line
    with pytest.raises(SystemExit):
        command("memory_limit", "--model", "7b", "--device", "cpu")
