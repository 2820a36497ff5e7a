"""Weights of a checkpoint's files go by their modules' names, and codes are never taken for any."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from axolotl_alphalora.spectral import BaseModel, MissingTensor, UnreadableCheckpoint
from axolotl_alphalora.spectral.checkpoint import quantization_method
from axolotl_alphalora.spectral.model_files import locate
from helpers.checkpoints import opened, tiny_model

MODULE = "model.layers.1.mlp.up_proj"
KEY = f"{MODULE}.weight"


@pytest.fixture
def directory(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    return tmp_path


def change(directory, **tensors):
    """Store other tensors under some keys; None takes the key away."""
    file = directory / "model.safetensors"
    content = load_file(file) | tensors
    save_file({key: value for key, value in content.items() if value is not None}, file)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_stored_dtype_is_kept_and_described(directory, dtype):
    stored = load_file(directory / "model.safetensors")
    change(directory, **{key: value.to(dtype) for key, value in stored.items()})
    weights, _ = opened(directory)
    assert weights.tensor(MODULE).dtype == dtype
    assert weights.description == {
        "source": "safetensors",
        "dtype": str(dtype).removeprefix("torch."),
        "revision": None,
        "quantization": None,
    }


def test_several_dtypes_are_described_if_they_belong_to_the_layers(directory):
    stored = load_file(directory / "model.safetensors")
    change(directory, **{KEY: stored[KEY].bfloat16(), "lm_head.weight": torch.ones(64, 32).half()})
    assert opened(directory)[0].description["dtype"] == "bfloat16+float32"


def test_the_location_names_tensor_and_file(directory):
    weights, _ = opened(directory)
    assert weights.location(MODULE) == f"tensor '{KEY}' of {directory / 'model.safetensors'}"


def test_a_missing_module_is_named_with_the_nearest_key(directory):
    with pytest.raises(MissingTensor) as caught:
        BaseModel(str(directory)).weights({"model.layers.1.mlp.upp_proj": (48, 32)})
    message = str(caught.value)
    assert "'model.layers.1.mlp.upp_proj'" in message
    assert str(directory) in message
    assert f"nearest tensor is '{KEY}'" in message
    assert isinstance(caught.value, ValueError)


def test_a_layer_that_is_not_stored_is_refused_before_anything_is_read(directory):
    change(directory, **{KEY: None})
    with pytest.raises(MissingTensor, match=f"no weight for module '{MODULE}'"):
        opened(directory)


CODES = [torch.uint8, torch.int8, torch.int32, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", CODES)
def test_codes_are_refused_without_a_word_of_the_config(directory, dtype, kind):
    change(directory, **{KEY: torch.ones(48, 32).to(dtype)})
    if kind == "bin":
        stored = load_file(directory / "model.safetensors")
        torch.save(stored, directory / "pytorch_model.bin")
        (directory / "model.safetensors").unlink()
    with pytest.raises(UnreadableCheckpoint, match=rf"'{KEY}' of .* has dtype .*: quantised codes"):
        opened(directory)


def test_packed_codes_beside_scales_are_missing_weights(directory):
    codes = torch.ones(48, 4, dtype=torch.int32)
    change(directory, **{KEY: None, f"{MODULE}.weight_packed": codes})
    with pytest.raises(MissingTensor, match=rf"nearest tensor is '{MODULE}\.weight_packed'"):
        opened(directory)


def test_codes_that_are_not_asked_for_do_no_harm(directory):
    codes = torch.arange(64).reshape(2, 32)
    change(directory, **{"model.position_ids": codes, "lm_head.weight": codes.to(torch.int8)})
    weights, _ = opened(directory)
    assert weights.tensor(MODULE).shape == (48, 32)
    assert weights.description["dtype"] == "float32"


@pytest.mark.parametrize(
    ("quantization", "method"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"bits": 4}, "unnamed method"),
        (None, None),
        ({}, "unnamed method"),
    ],
)
def test_the_method_of_a_quantised_checkpoint_is_known_from_its_config(
    directory, quantization, method
):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(
        json.dumps(config | {"quantization_config": quantization})
    )
    assert quantization_method(locate(directory)) == method
    (directory / "config.json").unlink()
    assert quantization_method(locate(directory)) is None


def test_a_fingerprint_is_that_of_the_tensor_and_known_once_it_was_read(directory, tmp_path):
    weights, shapes = opened(directory)
    assert weights.fingerprint(MODULE) is None
    digest = weights.identify(MODULE, weights.tensor(MODULE))
    assert weights.fingerprint(MODULE) == digest
    others = {weights.identify(name, weights.tensor(name)) for name in shapes if name != MODULE}
    assert len(others) == len(shapes) - 1
    assert digest not in others


def test_fused_tensors_are_all_named_and_make_a_fingerprint_for_each_part(tmp_path):
    tiny_model("hrm").save_pretrained(tmp_path)
    weights, shapes = opened(tmp_path)
    parts = [name for name in shapes if ".H_module.layers.0.self_attn." in name]
    fused = "model.H_module.layers.0.attn.gqkv_proj.weight"
    split = [name for name in parts if fused in weights.location(name)]
    assert {name.rpartition(".")[2] for name in split} == {
        *("q_proj", "k_proj", "v_proj", "gate_proj")
    }
    prints = {weights.identify(name, weights.tensor(name)) for name in parts}
    assert len(prints) == len(parts)
