"""Tokens a second of vLLMs: what is printed, around stand-ins for them."""

import json
import subprocess
import sys

import pytest

from benchmarks import serving
from helpers.models import save_tiny_model

ECHO = """
import sys
print("ready", flush=True)
for line in sys.stdin:
    batch, seed = map(int, line.split())
    print({speed} * batch, flush=True)
"""
SPEEDS = {"base": 20.0, "routed": 18.0, "LoRA": 10.0}


@pytest.fixture
def engines(monkeypatch):
    """The options of the vLLMs that would have been started; stand-ins answer in their place."""
    asked, real = {}, subprocess.Popen

    def popen(command, **options):
        if "--child" not in command:
            return real(command, **options)
        kind = next(kind for kind in SPEEDS if kind not in asked)
        asked[kind] = json.loads(command[command.index("--child") + 1])
        return real([sys.executable, "-c", ECHO.format(speed=SPEEDS[kind])], **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    return asked


def test_each_is_compared_with_the_base_of_the_same_turn(engines, tmp_path, monkeypatch, capsys):
    save_tiny_model(tmp_path)
    arguments = ["--model", str(tmp_path), "--repeats", "2", "--batch", "1", "4", "--eager"]
    monkeypatch.setattr(sys, "argv", ["serving", *arguments])
    serving.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [line for line in lines if line and line[0] in SPEEDS]
    assert [(row[0], float(row[1]), float(row[5])) for row in rows] == [
        *(("base", 20, 1), ("routed", 18, 0.9), ("LoRA", 10, 0.5)),
        *(("base", 80, 1), ("routed", 72, 0.9), ("LoRA", 40, 0.5)),
    ]
    options = {kind: each["llm"] for kind, each in engines.items()}
    assert "load_format" not in options["base"] and "enable_lora" not in options["base"]
    assert options["routed"]["load_format"] == "alphalora"
    assert options["LoRA"]["enable_lora"] and engines["LoRA"]["lora"]
    assert all(each["enforce_eager"] and each["max_num_seqs"] == 4 for each in options.values())
