"""The quickstart from end to end on a tiny model, with the real `axolotl train`."""

import json
import os
import re
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from axolotl_alphalora.cli import alphalora
from axolotl_alphalora.probe import ask_model, judge, read_probe
from axolotl_alphalora.quickstart import run as quickstart_run
from axolotl_alphalora.quickstart.config import CONFIG_FILE, write_config
from axolotl_alphalora.quickstart.evaluate import load
from axolotl_alphalora.quickstart.process import QuickstartError
from axolotl_alphalora.quickstart.run import run_quickstart
from helpers.forks import finished, fork

from .conftest import printed

STEPS = 200


@pytest.fixture
def quickstart(tiny_model, tmp_path):
    """Starts the command in a child of this process."""
    log = tmp_path / "output.txt"

    def command(*arguments):
        os.environ |= {"PYTHONPATH": str(Path(__file__).parent), "COLUMNS": "200"}
        os.environ["LOGITS"] = str(tmp_path / "logits.safetensors")
        alphalora(["quickstart", *arguments])

    def start(directory):
        arguments = ["--model", str(tiny_model), "--steps", str(STEPS), "--dir", str(directory)]
        arguments += ["--json", str(tmp_path / "summary.json")]
        return fork(command, *arguments, output=log)

    return SimpleNamespace(start=start, finish=partial(finished, output=log), log=log)


def wait_for(path, child, log):
    while not path.exists():
        assert child.is_alive(), log.read_text()
        time.sleep(0.02)


# The host starts twice, and each start imports for 20 s.
@pytest.mark.skipif(torch.cuda.is_available(), reason="a process with a GPU cannot be forked")
def test_killed_continued_finished(quickstart, tiny_model, tmp_path):
    directory, logits = tmp_path / "quickstart", tmp_path / "logits.safetensors"
    directory.mkdir()
    write_config(directory, tiny_model, STEPS)
    config = directory / CONFIG_FILE
    ours = "  - axolotl_alphalora.AlphaLoraPlugin"
    edited = config.read_text().replace(ours, f"  - record_logits.RecordLogits\n{ours}")
    config.write_text(edited)

    killed = quickstart.start(directory)
    state = directory / "adapter" / "checkpoint-10" / "trainer_state.json"
    wait_for(state, killed, quickstart.log)
    killed.kill()
    killed.join()
    assert not logits.exists()
    (directory / "adapter" / f"checkpoint-{STEPS}").mkdir()

    output = quickstart.finish(quickstart.start(directory))
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

    reloaded, tokenizer = load(Path(summary["adapter"]))
    probe = read_probe(Path(summary["adapter"]) / "probe.json")
    assert probe.method == "alphalora" and len(probe.asked) == 6
    assert f"{summary['adapter']}  the adapter, with probe.json" in output
    answers = [ask_model(reloaded, tokenizer, one.prompt, probe.tokens) for one in probe.asked]
    assert judge(probe, answers).served == "adapter"
    with reloaded.disable_adapter():
        answers = [ask_model(reloaded, tokenizer, one.prompt, probe.tokens) for one in probe.asked]
    assert judge(probe, answers).served == "base"
    trained = load_file(logits)
    with torch.inference_mode():
        found = reloaded(input_ids=trained["ids"].to(reloaded.device)).logits.cpu()
        with reloaded.disable_adapter():
            base = reloaded(input_ids=trained["ids"].to(reloaded.device)).logits.cpu()
    assert torch.allclose(found, trained["logits"], atol=1e-4)
    assert not torch.allclose(base, trained["logits"], atol=1e-1)

    assert "trained before" in quickstart.finish(quickstart.start(directory))
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


def test_the_summary_may_go_to_a_pipe(tmp_path, console, monkeypatch):
    monkeypatch.setattr(quickstart_run.Quickstart, "run", lambda *_: {"answer": 42})
    reading, writing = os.pipe()
    try:
        path = Path(f"/dev/fd/{writing}")
        run_quickstart(directory=tmp_path, json_path=path, console=console)
        assert json.loads(os.read(reading, 999)) == {"answer": 42}
    finally:
        os.close(reading)
        os.close(writing)


def test_no_steps_are_refused(tmp_path, console):
    with pytest.raises(QuickstartError, match="--steps 0"):
        run_quickstart(directory=tmp_path / "new", steps=0, console=console)
    assert not (tmp_path / "new").exists()
