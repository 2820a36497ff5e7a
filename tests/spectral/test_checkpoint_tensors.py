"""Stored tensors are read safely, one at a time, and known again while their files are the same."""

import json
import os
import pickle
import resource
import time

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from axolotl_alphalora.spectral import Cache, UnreadableCheckpoint
from axolotl_alphalora.spectral.cache import tensor_digest
from axolotl_alphalora.spectral.checkpoint import StoredTensors
from axolotl_alphalora.spectral.model_files import locate
from helpers.checkpoints import pickled, settled, tiny_model

KEY = "model.layers.1.mlp.up_proj.weight"


def stored(directory, cache=None):
    return StoredTensors(locate(directory), cache)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(params=["whole", "sharded"])
def sharding(request):
    return {"max_shard_size": "20KB" if request.param == "sharded" else "1GB"}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_every_tensor_of_a_saved_model_is_read(model, tmp_path, kind, sharding):
    model.save_pretrained(tmp_path, **sharding)
    if kind == "bin":
        pickled(tmp_path)
    tensors = stored(tmp_path)
    assert tensors.format == kind
    assert tensors.infos.keys() == model.state_dict().keys()
    for key, expected in model.state_dict().items():
        assert torch.equal(tensors.read(key), expected), key
        assert tensors.infos[key].shape == tuple(expected.shape)
        assert tensors.infos[key].dtype == "float32"
        assert tensors.infos[key].path.parent == tmp_path


def test_safetensors_come_before_pickles_and_whole_files_before_shards(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not looked at")
    (tmp_path / "model.safetensors.index.json").write_text("not looked at")
    assert stored(tmp_path).infos.keys() == {"a"}


def holed(directory, exponent):
    """Write a checkpoint with one tensor of 2**exponent zero bytes that take no place."""
    shape, size = [1 << 10, 1 << exponent - 12], 1 << exponent
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}})
    with open(directory / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + size)
    return tuple(shape)


def test_only_headers_are_read_before_a_tensor_is_asked_for(tmp_path):
    shape = holed(tmp_path, 32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert stored(tmp_path).infos["a"].shape == shape
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # 1 GiB


def test_a_file_too_large_for_the_machine_is_named(tmp_path):
    holed(tmp_path, 43)
    with pytest.raises(UnreadableCheckpoint, match=r"cannot read .*model\.safetensors.*memory"):
        stored(tmp_path)


def test_reading_keeps_no_tensor(model, tmp_path):
    model.save_pretrained(tmp_path)
    tensors = stored(tmp_path)
    tensors.read(KEY).zero_()
    assert tensors.read(KEY).any()


class Bomb:
    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path, form):
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "pytorch_model.bin"
    content = {KEY: torch.ones(2, 2), "bomb": Bomb(tmp_path / "exploded")}
    if form == "plain pickle":
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UnreadableCheckpoint, match=r"pytorch_model\.bin with torch's weights-only"):
        stored(tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]


def test_files_from_before_torch_1_6_are_read(model, tmp_path):
    state = model.state_dict()
    file = tmp_path / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=False)
    tensors = stored(tmp_path)
    assert all(torch.equal(tensors.read(key), state[key]) for key in state)


def test_what_is_no_tensor_is_left_out_of_a_pickle(tmp_path):
    torch.save({"a": torch.ones(2), "step": 7, "inner": {"b": 1}}, tmp_path / "pytorch_model.bin")
    assert stored(tmp_path).infos.keys() == {"a"}
    torch.save([torch.ones(2)], tmp_path / "pytorch_model.bin")
    with pytest.raises(UnreadableCheckpoint, match=r"pytorch_model\.bin holds a list"):
        stored(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", "half"])
def test_a_damaged_file_is_named(model, tmp_path, kind, content, sharding):
    model.save_pretrained(tmp_path, **sharding)
    if kind == "bin":
        pickled(tmp_path)
    file = sorted(tmp_path.glob(f"*.{kind}"))[-1]
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(UnreadableCheckpoint, match=f"cannot read .*{file.name}"):
        stored(tmp_path)


def test_a_file_that_breaks_after_its_header_was_read_is_named(model, tmp_path):
    model.save_pretrained(tmp_path)
    tensors = stored(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UnreadableCheckpoint, match=rf"tensor '{KEY}' of .*model\.safetensors"):
        tensors.read(KEY)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_missing_shard_and_a_bad_index_are_named(model, tmp_path, kind):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    if kind == "bin":
        pickled(tmp_path)
    shard = sorted(tmp_path.glob(f"*.{kind}"))[0]
    shard.unlink()
    with pytest.raises(UnreadableCheckpoint, match=f"names {shard.name}, which is missing"):
        stored(tmp_path)
    (index,) = tmp_path.glob("*.index.json")
    for content, message in [
        ("{}", f"{index.name} has no weight_map"),
        ('{"weight_map": []}', f"{index.name} has no weight_map"),
        ("[]", f"{index.name} holds no JSON object"),
        ("{", f"cannot read .*{index.name}"),
    ]:
        index.write_text(content)
        with pytest.raises(UnreadableCheckpoint, match=message):
            stored(tmp_path)


def test_the_layout_follows_keys_dtypes_and_shapes_but_no_values(tmp_path):
    def layout(tensors):
        save_file(tensors, tmp_path / "model.safetensors")
        return stored(tmp_path).layout

    first = layout({"a": torch.zeros(2, 3), "b": torch.zeros(1)})
    assert first == layout({"b": torch.ones(1), "a": torch.ones(2, 3)})
    others = [
        layout({"a": torch.zeros(3, 2), "b": torch.zeros(1)}),
        layout({"a": torch.zeros(2, 3).half(), "b": torch.zeros(1)}),
        layout({"a": torch.zeros(2, 3), "c": torch.zeros(1)}),
        layout({"a": torch.zeros(2, 3)}),
    ]
    assert len({first, *others}) == 5


@pytest.fixture
def learnt(model, tmp_path):
    """A settled checkpoint of which one digest has been learnt."""
    directory, cache = tmp_path / "model", Cache(tmp_path / "cache")
    model.save_pretrained(directory)
    settled(directory)
    tensors = stored(directory, cache)
    assert tensors.known_digest(KEY) is None
    assert tensors.digest(KEY, tensors.read(KEY)) == tensor_digest(model.state_dict()[KEY])
    tensors.keep_digests()
    return directory, cache


def test_digests_are_known_again_while_the_file_is_the_same(model, learnt):
    directory, cache = learnt
    tensors = stored(directory, cache)
    assert tensors.known_digest(KEY) == tensor_digest(model.state_dict()[KEY])
    assert tensors.known_digest("lm_head.weight") is None
    assert stored(directory).known_digest(KEY) is None


def rewrite(directory, by=1.0):
    file = directory / "model.safetensors"
    tensors = load_file(file)
    size = file.stat().st_size
    changed = {key: tensor + by for key, tensor in tensors.items()}
    file.write_bytes(save(changed, {"format": "pt"}))
    assert file.stat().st_size == size


@pytest.mark.parametrize("times", ["new", "old"])
def test_digests_of_a_changed_file_are_forgotten(learnt, times):
    directory, cache = learnt
    file = directory / "model.safetensors"
    before = file.stat()
    rewrite(directory)
    if times == "old":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert stored(directory, cache).known_digest(KEY) is None


def test_digests_of_a_file_that_has_just_changed_are_not_kept(model, tmp_path):
    """Not even when it is settled by the time that they are written."""
    directory, cache = tmp_path / "model", Cache(tmp_path / "cache")
    model.save_pretrained(directory)
    tensors = stored(directory, cache)
    tensors.digest(KEY, tensors.read(KEY))
    settled(directory)
    tensors.keep_digests()
    assert stored(directory, cache).known_digest(KEY) is None


def test_digests_of_a_file_that_changes_while_it_is_read_are_not_kept(model, tmp_path):
    directory, cache = tmp_path / "model", Cache(tmp_path / "cache")
    model.save_pretrained(directory)
    settled(directory)
    tensors = stored(directory, cache)
    tensors.digest(KEY, tensors.read(KEY))
    rewrite(directory)
    tensors.keep_digests()
    settled(directory, 60)
    assert stored(directory, cache).known_digest(KEY) is None


def test_a_checkpoint_that_was_copied_is_read_once_more_and_has_the_same_digest(learnt, tmp_path):
    directory, cache = learnt
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes())
    tensors = stored(copy, cache)
    assert tensors.known_digest(KEY) is None
    expected = stored(directory, cache).known_digest(KEY)
    assert tensors.digest(KEY, tensors.read(KEY)) == expected


def test_a_time_stamp_in_the_future_is_never_settled(model, tmp_path):
    directory, cache = tmp_path / "model", Cache(tmp_path / "cache")
    model.save_pretrained(directory)
    later = time.time() + 3600
    os.utime(directory / "model.safetensors", (later, later))
    tensors = stored(directory, cache)
    tensors.digest(KEY, tensors.read(KEY))
    tensors.keep_digests()
    assert stored(directory, cache).known_digest(KEY) is None
