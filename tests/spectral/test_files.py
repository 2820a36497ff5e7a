"""A checkpoint's files are found in a directory or in the hub's cache, and what is not is named."""

import shutil

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from axolotl_alphalora.spectral import BaseModel, UnreadableCheckpoint
from axolotl_alphalora.spectral.files import locate
from axolotl_alphalora.spectral.tensors import StoredTensors
from checkpoints import opened, tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODULE = "model.layers.1.mlp.up_proj"


@pytest.fixture
def directory(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.fixture
def hub(directory, tmp_path, monkeypatch):
    """The hub's cache with the model in it, offline."""
    root = tmp_path / "cache" / "models--some--model"
    for reference in ("main", "v2"):
        (root / "refs").mkdir(parents=True, exist_ok=True)
        (root / "refs" / reference).write_text(COMMIT)
    shutil.copytree(directory, root / "snapshots" / COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_a_directory_has_the_files_that_are_there(directory):
    files = locate(directory)
    assert files.find("model.safetensors") == directory / "model.safetensors"
    assert files.find("pytorch_model.bin") is None
    assert (files.name, files.revision) == (str(directory), None)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("revision", [None, "main", "v2", COMMIT])
def test_a_cached_repository_is_read_offline_with_its_commit(directory, revision):
    base = BaseModel("some/model", revision)
    weights = base.weights({MODULE: (48, 32)})
    expected, _ = opened(directory)
    assert torch.equal(weights.tensor(MODULE), expected.tensor(MODULE))
    assert weights.description["revision"] == COMMIT
    assert expected.description["revision"] is None


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(("name", "revision"), [("other/model", None), ("some/model", "v3")])
def test_a_repository_or_revision_that_is_not_cached_is_refused_offline(name, revision):
    with pytest.raises(UnreadableCheckpoint, match=f"{name} has neither .* in the cache"):
        StoredTensors(locate(name, revision))


def test_what_is_neither_directory_nor_repository_is_refused(tmp_path):
    with pytest.raises(UnreadableCheckpoint, match="absent' is neither a directory nor the id"):
        locate(tmp_path / "absent").find("config.json")
    with pytest.raises(UnreadableCheckpoint, match="neither a directory nor the id"):
        BaseModel(str(tmp_path / "absent")).weights({})


def test_a_failed_download_names_file_repository_and_revision(monkeypatch):
    def fail(*_, **__):
        raise OSError("connection reset")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(UnreadableCheckpoint) as caught:
        locate("some/model", "v2").find("config.json")
    assert "cannot get config.json of 'some/model', revision v2: connection reset" in str(
        caught.value
    )


@pytest.mark.parametrize(
    "name", ["weights.gguf", "model.fp16.safetensors", "consolidated.pth", "tf_model.h5"]
)
def test_other_weight_files_are_named_in_the_refusal(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UnreadableCheckpoint) as caught:
        StoredTensors(locate(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "neither model.safetensors nor pytorch_model.bin" in str(caught.value)
    assert str(caught.value).endswith(f"(it has {name})")
