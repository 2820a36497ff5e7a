"""The quickstart from end to end on a tiny model, with the real `axolotl train`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from axolotl_alphalora.quickstart import run as quickstart_run
from axolotl_alphalora.quickstart.config import CONFIG_FILE, write_config
from axolotl_alphalora.quickstart.evaluate import load
from axolotl_alphalora.quickstart.process import QuickstartError
from axolotl_alphalora.quickstart.run import run_quickstart

from .conftest import printed

STEPS = 200
COMMAND = "from axolotl_alphalora.cli import alphalora; alphalora()"


def start(model: Path, directory: Path, logits: Path) -> subprocess.Popen:
    arguments = ["--model", str(model), "--steps", str(STEPS), "--dir", str(directory)]
    arguments += ["--json", str(directory.parent / "summary.json")]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "quickstart", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ
        | {"PYTHONPATH": str(Path(__file__).parent), "LOGITS": str(logits), "COLUMNS": "200"},
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)


# About 75 s on two quiet cores: the host starts twice, and each start imports for 20 s.
def test_killed_continued_finished(tiny_model, tmp_path):
    directory, logits = tmp_path / "quickstart", tmp_path / "logits.safetensors"
    directory.mkdir()
    write_config(directory, tiny_model, STEPS)
    config = directory / CONFIG_FILE
    ours = "  - axolotl_alphalora.AlphaLoraPlugin"
    edited = config.read_text().replace(ours, f"  - record_logits.RecordLogits\n{ours}")
    config.write_text(edited)

    killed = start(tiny_model, directory, logits)
    wait_for(directory / "adapter" / "checkpoint-10" / "trainer_state.json", killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not logits.exists()
    (directory / "adapter" / f"checkpoint-{STEPS}").mkdir()

    output = finish(start(tiny_model, directory, logits))
    # What was killed with it ended within a step or two, and left the directory to the next one.
    assert int(re.search(r"continuing from step (\d+)", output)[1]) <= 40
    assert "was edited and is kept" in output
    assert config.read_text() == edited

    summary = json.loads((tmp_path / "summary.json").read_text())
    loss = summary["held_out_loss"]
    assert loss["after"] < loss["before"] - 0.3
    assert f"{loss['after']:.3f}" in output
    assert len(summary["plan"]["blocks"]) == 2
    assert sum(block["experts"] for block in summary["plan"]["blocks"]) == 10
    assert set(summary["example"]) >= {"instruction", "before", "after", "expected"}
    assert set(summary["seconds"]) == {"model", "data", "plan", "train", "evaluate"}
    assert summary["config_edited"] is True

    reloaded, _ = load(Path(summary["adapter"]))
    trained = load_file(logits)
    with torch.inference_mode():
        found = reloaded(input_ids=trained["ids"].to(reloaded.device)).logits.cpu()
        with reloaded.disable_adapter():
            base = reloaded(input_ids=trained["ids"].to(reloaded.device)).logits.cpu()
    assert torch.allclose(found, trained["logits"], atol=1e-4)
    assert not torch.allclose(base, trained["logits"], atol=1e-1)

    again = start(tiny_model, directory, logits)
    assert "trained before" in finish(again)
    assert json.loads((tmp_path / "summary.json").read_text())["skipped"] == ["train", "evaluate"]


def test_an_interrupt_ends_with_130_and_leaves_no_lock(tmp_path, console, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart_run, "prepare_model", interrupt)
    for _ in range(2):
        with pytest.raises(SystemExit) as error:
            run_quickstart(directory=tmp_path, console=console)
        assert error.value.code == 130
    assert "Run the same command again to continue" in printed(console)


def test_no_steps_are_refused(tmp_path, console):
    with pytest.raises(QuickstartError, match="--steps 0"):
        run_quickstart(directory=tmp_path / "new", steps=0, console=console)
    assert not (tmp_path / "new").exists()
