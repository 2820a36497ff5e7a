"""Runs that are killed or run out of disk: what they leave is whole, or is skipped with a word."""

import json
import shutil
import signal

import pytest
from safetensors.torch import load_file

SETTINGS = {
    "plugins": [
        "axolotl_alphalora.AlphaLoraPlugin",
        "spy.SpyPlugin",
        "sabotage.SabotagePlugin",
    ],
    "max_steps": 2,
    "save_steps": 1,
    "val_set_size": 0,
    "eval_steps": ...,
}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def whole(host, tmp_path_factory):
    """The run that nobody disturbs."""
    return host.train(tmp_path_factory.mktemp("whole"), **SETTINGS)


def struck(host, folder, changes=None, **plan):
    (folder / "sabotage.json").write_text(json.dumps(plan))
    run = host.run(folder, "train", **SETTINGS | (changes or {}))
    (folder / "sabotage.json").unlink()
    return run


def resumed(host, folder):
    return host.train(folder, auto_resume_from_checkpoints=True, **SETTINGS)


def flat(log: str) -> str:
    return " ".join(log.split())


def assert_ends_like(run, whole):
    got, want = load_file(run.out / WEIGHTS), load_file(whole.out / WEIGHTS)
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].equal(want[name]), name
    assert not list(run.out.rglob(".saving-*"))


@pytest.mark.works("Robustness", "SIGKILL and SIGTERM while a checkpoint is written")
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_a_checkpoint_that_was_being_written_is_skipped_and_the_run_ends_the_same(
    host, whole, tmp_path, kind
):
    run = struck(host, tmp_path, when=1, signal=int(kind))
    assert run.code == -kind
    unfinished = run.out / "checkpoint-2"
    assert not (unfinished / WEIGHTS).exists(), "no half adapter under the final name"
    assert (run.out / "checkpoint-1" / WEIGHTS).exists()
    again = resumed(host, tmp_path)
    assert "checkpoint-2 is not complete and is skipped: it has no whole" in flat(again.log)
    assert "saved in out/checkpoint-1" in flat(again.log)
    assert_ends_like(again, whole)


@pytest.mark.works("Robustness", "a run killed in its first checkpoint starts anew")
def test_with_no_complete_checkpoint_the_run_starts_anew(host, whole, tmp_path):
    assert struck(host, tmp_path, when=0, signal=int(signal.SIGKILL)).code == -9
    again = resumed(host, tmp_path)
    assert "no checkpoint in ./out is complete: the run starts anew" in flat(again.log)
    assert_ends_like(again, whole)


@pytest.mark.works(
    "Robustness", "a kill while the final adapter is written leaves none, or the old"
)
def test_the_final_adapter_is_there_whole_or_not_at_all(host, whole, tmp_path):
    shutil.copytree(whole.out, tmp_path / "out")
    for checkpoint in (tmp_path / "out").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    names = (WEIGHTS, "adapter_config.json")
    old = {name: (tmp_path / "out" / name).read_bytes() for name in names}
    # In one process it computes the same.
    other = {"alphalora": {"experts_per_block": 3, "balance_over": "global_batch"}}
    run = struck(host, tmp_path, other, when=2, signal=int(signal.SIGKILL))
    assert run.code == -9
    assert {name: (run.out / name).read_bytes() for name in names} == old
    begun = json.loads((run.out / "checkpoint-2" / names[1]).read_text())
    assert begun["balance_over"] == "global_batch"
    last = load_file(run.out / "checkpoint-2" / WEIGHTS)
    assert all(last[name].equal(want) for name, want in load_file(whole.out / WEIGHTS).items())


@pytest.mark.works("Robustness", "a full disk is an error, not a half adapter")
def test_a_full_disk_is_an_error_and_what_was_there_stays(host, whole, tmp_path):
    run = struck(host, tmp_path, when=1, limit=20_000)
    assert run.code == 1
    assert "File too large" in run.log
    assert not (run.out / "checkpoint-2" / WEIGHTS).exists()
    assert not (run.out / WEIGHTS).exists()
    again = resumed(host, tmp_path)
    assert "checkpoint-2 is not complete" in flat(again.log)
    assert_ends_like(again, whole)


@pytest.mark.refused("Robustness", "a damaged adapter file, named before the model is loaded")
@pytest.mark.parametrize("key", ["lora_model_dir", "resume_from_checkpoint"])
def test_a_truncated_adapter_is_refused_by_name(host, whole, tmp_path, key):
    adapter = tmp_path / "adapter"
    shutil.copytree(whole.out / "checkpoint-1", adapter)
    content = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(content[: len(content) // 2])
    run = host.run(tmp_path, "train", **SETTINGS, **{key: str(adapter)})
    assert run.code != 0
    assert f"{key}: {adapter}: {WEIGHTS} is damaged" in flat(run.log)
    assert "Loading weights" not in run.log


@pytest.mark.refused("Robustness", "an adapter of a newer release", "names the release it needs")
def test_an_adapter_of_a_newer_release_says_what_it_needs(host, whole, tmp_path):
    adapter = tmp_path / "adapter"
    shutil.copytree(whole.out / "checkpoint-1", adapter)
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text()) | {"needs_version": "7.1", "mystery": 1}
    file.write_text(json.dumps(config))
    run = host.run(tmp_path, "train", **SETTINGS, lora_model_dir=str(adapter))
    assert run.code != 0
    assert f"lora_model_dir: {adapter}: This adapter needs axolotl-alphalora 7.1" in flat(run.log)
    assert "Loading weights" not in run.log
