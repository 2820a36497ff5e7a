"""Checkpoints are read one tensor at a time, by the module's name, and never as codes."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
)

from axolotl_alphalora.spectral import CheckpointWeights, MissingTensor, UnreadableCheckpoint

CONFIGS = {
    "llama": LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    ),
    "gpt2": GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2),
}
LLAMA_MODULE = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module", params=CONFIGS)
def model(request) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param])


@pytest.fixture
def llama_dir(tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS["llama"]).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def matrices(model):
    return {
        name: module.weight
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and name != "lm_head"
    }


def assert_all_read(weights, expected):
    assert expected
    for name, weight in expected.items():
        assert torch.equal(weights.tensor(name), weight), name


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_every_weight_of_a_saved_model_is_read(model, tmp_path, shard_size):
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "20KB")
    weights = CheckpointWeights.open(tmp_path)
    assert_all_read(weights, matrices(model))
    assert weights.description == {
        "source": "safetensors",
        "dtype": "float32",
        "revision": None,
    }


def test_a_checkpoint_of_the_base_model_lacks_the_prefix(model, tmp_path):
    model.base_model.save_pretrained(tmp_path)
    assert_all_read(CheckpointWeights.open(str(tmp_path)), matrices(model))


def test_a_checkpoint_of_the_whole_model_has_an_extra_prefix(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert_all_read(CheckpointWeights.open(tmp_path), matrices(model.base_model))


def test_the_stored_dtype_is_kept_and_described(llama_dir):
    file = llama_dir / "model.safetensors"
    stored = {k: v.bfloat16() if v.ndim == 2 else v for k, v in load_file(file).items()}
    save_file(stored, file)
    weights = CheckpointWeights.open(llama_dir)
    assert weights.tensor(LLAMA_MODULE).dtype == torch.bfloat16
    assert weights.description["dtype"] == "bfloat16"


def test_the_location_names_tensor_and_file(llama_dir):
    location = CheckpointWeights.open(llama_dir).location(LLAMA_MODULE)
    assert location == f"tensor '{LLAMA_MODULE}.weight' of {llama_dir / 'model.safetensors'}"


def test_a_missing_module_is_named_with_the_nearest_key(llama_dir):
    weights = CheckpointWeights.open(llama_dir)
    with pytest.raises(MissingTensor) as caught:
        weights.tensor("model.layers.1.mlp.upp_proj")
    message = str(caught.value)
    assert "'model.layers.1.mlp.upp_proj'" in message
    assert str(llama_dir) in message
    assert f"nearest is '{LLAMA_MODULE}.weight'" in message
    assert isinstance(caught.value, ValueError)


def test_a_name_that_fits_two_prefixes_is_refused(tmp_path):
    save_file(
        {"text.h.0.q.weight": torch.ones(2, 2), "image.h.0.q.weight": torch.ones(2, 2)},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(MissingTensor, match=r"more than one fits .*image\.h.*text\.h"):
        CheckpointWeights.open(tmp_path).tensor("h.0.q")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.gguf", "model.fp16.safetensors"])
def test_other_weight_files_are_named_in_the_refusal(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UnreadableCheckpoint, match=rf"neither model\.safetensors .*has {name}"):
        CheckpointWeights.open(tmp_path)


def test_a_quantised_checkpoint_is_refused_by_its_config(llama_dir):
    config = json.loads((llama_dir / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (llama_dir / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnreadableCheckpoint, match=r"quantised \(gptq, .*codes, not weights"):
        CheckpointWeights.open(llama_dir)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.float8_e4m3fn])
def test_codes_are_refused_without_a_config(llama_dir, dtype):
    (llama_dir / "config.json").unlink()
    file = llama_dir / "model.safetensors"
    stored = load_file(file)
    stored[f"{LLAMA_MODULE}.weight"] = torch.ones(48, 32).to(dtype)
    save_file(stored, file)
    with pytest.raises(UnreadableCheckpoint, match=rf"'{LLAMA_MODULE}\.weight' of .* has dtype"):
        CheckpointWeights.open(llama_dir)


def test_integer_buffers_do_not_make_a_checkpoint_unreadable(llama_dir):
    file = llama_dir / "model.safetensors"
    save_file({**load_file(file), "model.position_ids": torch.arange(4)}, file)
    assert CheckpointWeights.open(llama_dir).tensor(LLAMA_MODULE).shape == (48, 32)


def test_damaged_and_missing_files_are_named(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[0]
    shard.write_bytes(b"version https://git-lfs")
    with pytest.raises(UnreadableCheckpoint, match=f"cannot read .*{shard.name}"):
        CheckpointWeights.open(tmp_path)
    shard.unlink()
    with pytest.raises(UnreadableCheckpoint, match=f"names {shard.name}, which is missing"):
        CheckpointWeights.open(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UnreadableCheckpoint, match=r"index\.json has no weight_map"):
        CheckpointWeights.open(tmp_path)


def test_what_is_neither_directory_nor_repository_is_refused(tmp_path):
    with pytest.raises(UnreadableCheckpoint, match="neither a directory nor the id"):
        CheckpointWeights.open(tmp_path / "absent")


@pytest.fixture
def cached_repository(llama_dir, tmp_path, monkeypatch):
    """A model in the hub's cache, with the hub offline."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "cache"
    root = cache / "models--some--model"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    shutil.copytree(llama_dir, root / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return commit


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_cached_repository_is_read_offline(cached_repository, llama_dir, revision):
    weights = CheckpointWeights.open("some/model", revision)
    expected = CheckpointWeights.open(llama_dir).tensor(LLAMA_MODULE)
    assert torch.equal(weights.tensor(LLAMA_MODULE), expected)
    assert weights.description["revision"] == cached_repository


@pytest.mark.usefixtures("cached_repository")
def test_a_repository_that_is_not_cached_is_refused_offline():
    with pytest.raises(UnreadableCheckpoint, match="other/model has neither"):
        CheckpointWeights.open("other/model")


def test_reading_keeps_no_tensor(llama_dir):
    weights = CheckpointWeights.open(llama_dir)
    first = weights.tensor(LLAMA_MODULE)
    first.zero_()
    assert weights.tensor(LLAMA_MODULE).any()
    assert not any(isinstance(value, torch.Tensor | nn.Module) for value in vars(weights).values())
