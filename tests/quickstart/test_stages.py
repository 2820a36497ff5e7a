"""What is kept, continued and deleted when a run starts again; the programs are stood in for."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from axolotl_alphalora.quickstart import run as quickstart_run
from axolotl_alphalora.quickstart.config import read_config, write_config
from axolotl_alphalora.quickstart.process import QuickstartError
from axolotl_alphalora.quickstart.run import Quickstart

from .conftest import printed


@pytest.fixture
def programs(monkeypatch):
    """What was run, by name; `fails` makes the next one fail half-way."""
    ran = []

    def run(command, log, console, *, name, **_):
        ran.append(name)
        if name == "training":
            config = read_config(Path(command[3]))
            config.output_dir.mkdir(exist_ok=True)
            (config.output_dir / "adapter_model.safetensors").write_bytes(b"weights")
        else:
            Path(command[-1]).write_text('{"rows": 1}')
        if name == "evaluating":
            (Path(command[2]) / "probe.json").write_text("{}")
        if os.environ.pop("FAILS", None):
            raise QuickstartError("failed")

    monkeypatch.setattr(quickstart_run, "run_python", run)
    monkeypatch.setattr(quickstart_run.Plan, "load", lambda path: path)
    return ran


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path, "model", 40)


@pytest.fixture
def start(tmp_path, console):
    return lambda: Quickstart(tmp_path, 0, console)


def add_checkpoint(config, step, state='{"global_step": 1}'):
    folder = config.output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    if state is not None:
        (folder / "trainer_state.json").write_text(state)
    return folder


def interrupt(start, config, run, monkeypatch):
    """Train, and be stopped in the middle."""
    monkeypatch.setenv("FAILS", "1")
    with pytest.raises(QuickstartError):
        start().train(config, run)


def test_training_goes_on_from_its_checkpoints(start, config, programs, monkeypatch, console):
    interrupt(start, config, "run", monkeypatch)
    whole, cut = add_checkpoint(config, 10), add_checkpoint(config, 20, None)
    start().train(config, "run")
    assert programs == ["training", "training"]
    assert whole.exists() and cut.exists(), "the plugin skips the one that was cut short"
    assert "continuing from step 10\n" in printed(console)


def test_a_training_that_failed_is_not_taken_for_done(start, config, programs, monkeypatch):
    start().train(config, "run")
    interrupt(start, config, "other", monkeypatch)
    start().train(config, "other")
    start().train(config, "other")
    assert programs == ["training"] * 3


def test_another_run_starts_clean_and_leaves_other_files(start, config, programs, tmp_path):
    start().train(config, "run")
    old = add_checkpoint(config, 10)
    mine = [tmp_path / "notes.txt", config.output_dir / "notes.txt"]
    for path in mine:
        path.write_text("mine")
    start().train(config, "other")
    assert not old.exists()
    assert [path.read_text() for path in mine] == ["mine", "mine"]


def test_deletion_that_was_interrupted_is_not_taken_for_the_old_run(
    start, config, programs, monkeypatch
):
    start().train(config, "run")
    add_checkpoint(config, 10)
    late = add_checkpoint(config, 20)

    def stop(path):
        if path == late:
            raise KeyboardInterrupt
        remove(path)

    remove = shutil.rmtree
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(quickstart_run.shutil, "rmtree", stop)
        start().train(config, "other")
    (late / "adapter_model.safetensors").unlink()
    (config.output_dir / "adapter_model.safetensors").unlink()
    start().train(config, "run")
    assert not late.exists()
    assert programs == ["training", "training"]


@pytest.mark.parametrize("place", ["adapter", "elsewhere"])
def test_checkpoints_that_are_not_ours_are_refused(tmp_path, start, programs, place):
    path = tmp_path / "config.yml"
    path.write_text(json.dumps({"base_model": "m", "output_dir": str(tmp_path / place)}))
    config = read_config(path)
    folder = add_checkpoint(config, 10)
    with pytest.raises(QuickstartError, match="checkpoints of another run"):
        start().train(config, "run")
    assert folder.exists() and not programs


def test_a_probe_of_the_last_adapter_does_not_stay_beside_a_new_one(start, config, programs):
    probe = config.output_dir / "probe.json"
    start().train(config, "run")
    probe.write_text("{}")
    start().train(config, "run")
    assert probe.exists()
    start().train(config, "other")
    assert not probe.exists()


def test_half_written_datasets_are_dropped(tmp_path, start, config, programs):
    shard = tmp_path / "prepared" / "hash" / "data-00000.arrow"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"half")
    start().train(config, "run")
    assert not shard.exists()


def test_what_is_done_is_done_once_and_again_when_its_input_changes(
    tmp_path, start, config, programs
):
    rows = [tmp_path / "train.jsonl", tmp_path / "held_out.jsonl"]
    for path in rows:
        path.write_text("{}\n")

    def everything(run):
        programs.clear()
        quickstart = start()
        quickstart.plan(config, run)
        quickstart.train(config, run)
        assert quickstart.evaluate(config) == {"rows": 1}
        return list(programs), quickstart.skipped

    whole = ["planning", "training", "evaluating"]
    assert everything("run") == (whole, [])
    assert everything("run") == ([], ["train", "evaluate"])
    quantised = replace(config, bits=4)
    start().evaluate(quantised)
    assert programs == ["evaluating"], "its base is another one"
    assert everything("run")[0] == ["evaluating"]
    (tmp_path / "plan.json").unlink()
    assert everything("run")[0] == ["planning"]
    rows[1].write_text('{"more": 1}\n')
    assert everything("run")[0] == ["evaluating"]
    (config.output_dir / "probe.json").unlink()
    assert everything("run")[0] == ["evaluating"]
    (config.output_dir / "adapter_model.safetensors").unlink()
    assert everything("run")[0] == ["training", "evaluating"]
    (tmp_path / "state.json").write_text('{"half')
    assert everything("run")[0] == whole
    assert everything("other")[0] == whole


class Stop(Exception):
    """Ends a quickstart before it plans."""


def test_a_run_depends_on_its_config_data_and_model(tmp_path, tiny_model, console, monkeypatch):
    def plan(self, config, made_from):
        raise Stop(made_from)

    def digest(model, steps):
        with pytest.raises(Stop) as stop:
            Quickstart(tmp_path, 0, console).run(str(model), steps)
        return stop.value.args[0]

    monkeypatch.setattr(Quickstart, "plan", plan)
    copied = shutil.copytree(tiny_model, tmp_path / "model")
    first = digest(copied, 40)
    assert digest(copied, 40) == first
    others = {digest(copied, 41), digest("hub/model", 40)}
    (copied / "model.safetensors").touch()
    others.add(digest(copied, 40))
    (tmp_path / "train.jsonl").write_text("{}\n")
    others.add(digest(copied, 40))
    mine, path = tmp_path / "mine.jsonl", tmp_path / "config.yml"
    mine.write_text("{}\n")
    path.write_text(path.read_text().replace(str(tmp_path / "train.jsonl"), str(mine)))
    others.add(digest(copied, 40))
    mine.write_text('{"more": 1}\n')
    others.add(digest(copied, 40))
    assert digest(copied, 40) in others
    assert len(others | {first}) == 7
    path.write_text(path.read_text().replace(str(mine), str(tmp_path.parent)))
    last = digest(copied, 40)
    (tmp_path / "state.json").write_text("{}")
    assert digest(copied, 40) == last, "what the quickstart writes is no data"
    (tmp_path.parent / f"{tmp_path.name}.jsonl").write_text("{}\n")
    assert digest(copied, 40) != last
