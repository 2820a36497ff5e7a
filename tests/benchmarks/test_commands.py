"""Benchmarks run, for a step or two of a tiny model: what they print is not looked at for speed."""

import sys
from importlib import import_module

import pytest

COMMANDS = {
    "training_step": ["--model", "tiny", "--repeats", "1", "--batch", "1", "--length", "8"],
    "decode": [
        "--model",
        "tiny",
        "--repeats",
        "1",
        "--steps",
        "2",
        "--batch",
        "1",
        "--prompt",
        "4",
    ],
}
ROWS = {
    "training_step": ["none", "lora", "lora-equal", "experts", "uneven", "dense", "dispatch"],
    "decode": ["no", "LoRA", "AlphaLoRA"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_it_prints_a_row_for_each_contestant(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, *COMMANDS[name]])
    import_module(f"benchmarks.{name}").main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-len(ROWS[name]) :]] == ROWS[name]
