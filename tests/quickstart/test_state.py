"""What is kept, continued and deleted when a run starts again."""

import json

import pytest

from axolotl_alphalora.quickstart.config import RunConfig, write_config
from axolotl_alphalora.quickstart.files import QuickstartError
from axolotl_alphalora.quickstart.state import State, run_digest


@pytest.fixture
def config(tmp_path) -> RunConfig:
    return write_config(tmp_path, "model", 40)


def add_checkpoint(config, step, state='{"global_step": 1}'):
    folder = config.output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    if state is not None:
        (folder / "trainer_state.json").write_text(state)
    return folder


def test_checkpoints_cut_short_are_dropped(tmp_path, config):
    State(tmp_path).begin("run", config)
    complete = add_checkpoint(config, 10)
    early, late = add_checkpoint(config, 20, None), add_checkpoint(config, 30, '{"global_')
    assert State(tmp_path).begin("run", config) == 10
    assert complete.exists()
    assert not early.exists()
    assert not late.exists()


def test_the_last_step_is_not_continued_from(tmp_path, config):
    State(tmp_path).begin("run", config)
    add_checkpoint(config, 30)
    last = add_checkpoint(config, 40)
    assert State(tmp_path).begin("run", config) == 30
    assert not last.exists()


def test_another_run_starts_clean_and_leaves_other_files(tmp_path, config):
    State(tmp_path).begin("run", config)
    add_checkpoint(config, 10)
    mine = tmp_path / "notes" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert State(tmp_path).begin("other", config) == 0
    assert not config.output_dir.exists()
    assert mine.read_text() == "mine"


def test_deletion_that_was_interrupted_is_not_taken_for_the_old_run(tmp_path, config, monkeypatch):
    State(tmp_path).begin("run", config)
    State(tmp_path).note(trained=True)
    add_checkpoint(config, 10)
    (config.output_dir / "adapter_model.safetensors").write_bytes(b"weights")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("axolotl_alphalora.quickstart.state.shutil.rmtree", interrupt)
        State(tmp_path).begin("other", config)
    assert not State(tmp_path).is_trained("run", config)
    assert State(tmp_path).begin("run", config) == 0


def test_output_that_is_not_ours_is_moved_aside(tmp_path, config):
    for number in (1, 2):
        (config.output_dir).mkdir()
        (config.output_dir / "thesis.txt").write_text(str(number))
        (tmp_path / "state.json").unlink(missing_ok=True)
        State(tmp_path).begin("run", config)
        assert (tmp_path / f"adapter.kept-{number}" / "thesis.txt").read_text() == str(number)


def test_checkpoints_elsewhere_are_refused(tmp_path):
    path = tmp_path / "config.yml"
    path.write_text(json.dumps({"base_model": "m", "output_dir": str(tmp_path / "elsewhere")}))
    from axolotl_alphalora.quickstart.config import read_config

    config = read_config(path)
    folder = add_checkpoint(config, 10)
    with pytest.raises(QuickstartError, match="checkpoints of another run"):
        State(tmp_path).begin("run", config)
    assert folder.exists()


def test_half_written_datasets_are_dropped(tmp_path, config):
    shard = tmp_path / "prepared" / "hash" / "data-00000.arrow"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"half")
    State(tmp_path).begin("run", config)
    assert not shard.exists()


def test_finished_stages_are_remembered(tmp_path, config):
    state = State(tmp_path)
    state.begin("run", config)
    assert not state.is_trained("run", config)
    state.note(trained=True, evaluated="what")
    again = State(tmp_path)
    assert not again.is_trained("run", config), "the adapter is missing"
    config.output_dir.mkdir()
    (config.output_dir / "adapter_model.safetensors").write_bytes(b"weights")
    assert again.is_trained("run", config)
    assert not again.is_trained("other", config)
    assert not again.is_done("evaluated", "what", tmp_path / "evaluation.json")
    (tmp_path / "evaluation.json").write_text('{"rows": 1}')
    assert again.is_done("evaluated", "what", tmp_path / "evaluation.json")
    assert not again.is_done("evaluated", "else", tmp_path / "evaluation.json")


def test_the_run_depends_on_config_data_and_model(tmp_path, tiny_model):
    first = run_digest(write_config(tmp_path, tiny_model, 40), "data")
    assert first == run_digest(write_config(tmp_path, tiny_model, 40), "data")
    others = {
        run_digest(write_config(tmp_path, tiny_model, 40), "other data"),
        run_digest(write_config(tmp_path, tiny_model, 41), "data"),
        run_digest(write_config(tmp_path, "hub/model", 40), "data"),
    }
    assert len(others | {first}) == 4
