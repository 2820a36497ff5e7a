"""A checkpoint's files are found in a directory or in the hub's cache, and what is not is named."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from axolotl_alphalora import analyze
from axolotl_alphalora.planning import PlanRequest, Targets, plan_from_files
from axolotl_alphalora.spectral import BaseModel, UnreadableCheckpoint, check_model_files
from axolotl_alphalora.spectral.checkpoint import StoredTensors
from axolotl_alphalora.spectral.model_files import locate
from helpers.checkpoints import opened, pickled, tiny_model

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


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 269060552\n"
)


@pytest.mark.parametrize(
    ("stored", "file"),
    [
        ("whole", "model.safetensors"),
        ("whole", "config.json"),
        ("sharded", "model-00002-of-*.safetensors"),
        ("bin", "pytorch_model.bin"),
        ("sharded bin", "pytorch_model-00002-of-*.bin"),
    ],
)
def test_a_pointer_of_git_lfs_is_called_one(tmp_path, stored, file):
    size = "20KB" if "sharded" in stored else "1GB"
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size=size)
    if "bin" in stored:
        pickled(tmp_path)
    (path,) = tmp_path.glob(file)
    path.write_bytes(POINTER)
    for open_it in (lambda: analyze(tmp_path), lambda: opened(tmp_path)):
        with pytest.raises(UnreadableCheckpoint) as caught:
            open_it()
        assert f"{path} is a pointer of git-lfs" in str(caught.value)
        assert f"run `git lfs pull` in {tmp_path}" in str(caught.value)


def test_a_pointer_matters_where_the_file_is_needed(directory):
    """Other formats, and the tokenizer of a model whose weights alone are read."""
    (directory / "pytorch_model.bin").write_bytes(POINTER)
    (directory / "tokenizer.json").write_bytes(POINTER)
    opened(directory)
    check_model_files(directory, tokenizer=False)
    with pytest.raises(UnreadableCheckpoint, match=r"tokenizer.json is a pointer of git-lfs"):
        check_model_files(directory)


def test_a_gguf_file_can_be_a_pointer_too(tmp_path):
    (tmp_path / "model.gguf").write_bytes(POINTER)
    with pytest.raises(UnreadableCheckpoint, match=r"model.gguf is a pointer of git-lfs"):
        BaseModel(str(tmp_path / "model.gguf"))


def run_with_an_adapter(folder, adapter, method="ALPHALORA"):
    """What Axolotl leaves in a run's directory: the base's config beside the adapter."""
    (folder / adapter).mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": method, "base_model_name_or_path": "some/base"}
    (folder / adapter / "adapter_config.json").write_text(json.dumps(settings))
    (folder / adapter / "adapter_model.safetensors").write_bytes(b"")
    (folder / adapter / "optimizer.pt").write_bytes(b"")
    (folder / adapter / "training_args.bin").write_bytes(b"")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


@pytest.mark.parametrize("adapter", [".", "checkpoint-20"])
@pytest.mark.parametrize(
    ("method", "key"), [("ALPHALORA", "lora_model_dir"), ("LORA", "alphalora.init_from")]
)
def test_an_adapter_is_no_base_model_and_its_base_is_named(tmp_path, adapter, method, key):
    run_with_an_adapter(tmp_path, adapter, method)
    request = PlanRequest(base_model=str(tmp_path), targets=Targets(linear=True))
    for refuse in (
        lambda: check_model_files(tmp_path),
        lambda: analyze(tmp_path),
        lambda: plan_from_files(request),
    ):
        with pytest.raises(ValueError, match="no base model") as caught:
            refuse()
        assert "as `base_model` (some/base)" in str(caught.value)
        assert f"{tmp_path / adapter} as `{key}`" in str(caught.value)


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize(
    "name", ["pytorch_model_fsdp.bin", "dataloader_state.pt", "optimizer.bin", "scheduler.pt"]
)
def test_what_training_leaves_beside_an_adapter_is_no_model(tmp_path, name, config):
    run_with_an_adapter(tmp_path, ".")
    (tmp_path / name).write_bytes(b"")
    if not config:
        (tmp_path / "config.json").unlink()
    with pytest.raises(UnreadableCheckpoint, match="no base model"):
        check_model_files(tmp_path)


def test_a_checkpoint_of_an_adapter_alone_is_no_model_whatever_lies_there(tmp_path):
    run_with_an_adapter(tmp_path, ".")
    (tmp_path / "config.json").unlink()
    (tmp_path / "some_state.pt").write_bytes(b"")
    with pytest.raises(UnreadableCheckpoint, match=f"and {tmp_path} as `lora_model_dir`"):
        check_model_files(tmp_path)


@pytest.mark.parametrize("settings", ["{", "[]", "{}"])
def test_an_adapter_that_does_not_name_its_base_is_refused_all_the_same(tmp_path, settings):
    (tmp_path / "adapter_config.json").write_text(settings)
    with pytest.raises(UnreadableCheckpoint, match="as `base_model`, and"):
        check_model_files(tmp_path)


def test_a_model_beside_adapters_is_a_base(directory):
    run_with_an_adapter(directory / "runs", "out")
    shutil.copytree(directory / "runs" / "out", directory / "checkpoint-20")
    opened(directory)
    check_model_files(directory)
