"""Experts that start from a plain LoRA compute what the base model does with that LoRA."""

import json
import shutil

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from axolotl_alphalora.adapter import AlphaLoraConfig
from axolotl_alphalora.adapter.warm_start import _directions
from helpers.kinds import assert_same, forward, fresh, layers, outputs, trainable
from helpers.starting import FIRST, MINE, counts, refused, saved_lora, started

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def edit(folder, **changes):
    file = folder / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


PATTERNS = {
    "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 3},
    "alpha_pattern": {"q_proj": 5},
}
LORAS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": PATTERNS,
    "rslora patterns": PATTERNS | {"use_rslora": True},
}


@pytest.mark.works("PEFT", "experts started from a plain LoRA", "`init_from`: copies, or by SVD")
@pytest.mark.parametrize("changes", LORAS.values(), ids=LORAS)
@pytest.mark.parametrize(
    "mine",
    [
        {},
        {"r": 7, "use_rslora": True},
        {"top_k": 3, "rank_pattern": {"model.layers.1.mlp.down_proj": 9}},
        {"init_split": "svd", "top_k": 3},
        {"init_split": "svd", "top_k": 5, "r": 6, "use_rslora": True},
    ],
    ids=["copy", "copy larger", "copy ranks", "svd", "svd larger"],
)
def test_the_function_is_that_of_the_lora(tmp_path, changes, mine):
    before = saved_lora(tmp_path, **changes)
    assert (before - outputs(fresh("linear"))).abs().max() > 0.05
    model = started(tmp_path, **mine)
    assert {layer.num_experts["default"] for layer in layers(model).values()} == {1, 2, 3}
    assert_same(outputs(model), before, atol=2e-6)


@pytest.mark.parametrize("split", ["copy", "svd"])
@pytest.mark.parametrize("kind", ["conv1d", "4-bit", "8-bit"])
def test_so_it_is_on_other_kinds_of_layers(tmp_path, kind, split):
    targets, fan = ["q_proj", "down_proj"], {}
    if kind == "conv1d":
        targets, fan = ["attn.c_attn", "mlp.c_proj"], {"fan_in_fan_out": True}
    before = saved_lora(tmp_path, kind, target_modules=targets, **fan)
    model = started(tmp_path, kind, targets=targets, init_split=split, top_k=3)
    assert_same(outputs(model), before, atol=5e-6)


def test_a_half_precision_base_does_not_round_the_lora(tmp_path):
    before = saved_lora(tmp_path, dtype=torch.bfloat16)
    model = started(tmp_path, dtype=torch.bfloat16)
    want = load_file(tmp_path / WEIGHTS)[f"base_model.model.{FIRST}.lora_A.weight"]
    assert torch.equal(layers(model)[FIRST].alphalora_A["default"], want)
    assert_same(outputs(model), before, atol=0.02)


def test_a_lower_rank_will_do_where_the_update_has_no_higher_one(tmp_path):
    saved_lora(tmp_path)

    def flatten(tensors):
        for key in tensors:
            if "lora_A" in key:
                tensors[key][2:] = tensors[key][:2] * 3

    edit_weights(tmp_path, flatten)
    before = outputs(PeftModel.from_pretrained(fresh("linear"), tmp_path))
    assert_same(outputs(started(tmp_path, r=2)), before, atol=2e-6)
    with pytest.raises(ValueError, match=r"experts of rank 2 in .*r \(lora_r\) to 2 or more"):
        started(tmp_path, r=1)


def test_small_directions_of_a_wide_layer_are_kept():
    """What counts as round-off depends on the rank, not on the width of the layer."""
    torch.manual_seed(0)
    u = torch.linalg.qr(torch.randn(14336, 4, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(512, 4, dtype=torch.float64))[0]
    values = torch.tensor([1.0, 0.1, 1.6e-3, 1e-4], dtype=torch.float64)
    a, b = _directions(v.T.float(), (u * values).float())
    assert a.shape[0] == 4
    torch.testing.assert_close(b @ a, ((u * values) @ v.T).float(), rtol=0, atol=1e-7)


def test_the_parts_of_a_split_are_singular_directions_taken_in_turn(tmp_path):
    saved_lora(tmp_path, target_modules=["q_proj"])
    model = started(tmp_path, target_modules=["q_proj"], num_experts=3, init_split="svd", top_k=3)
    layer, tensors = layers(model)[FIRST], load_file(tmp_path / WEIGHTS)
    assert not layer.alphalora_router["default"].any()
    key = f"base_model.model.{FIRST}.lora_"
    update = 3 * tensors[f"{key}B.weight"] @ tensors[f"{key}A.weight"]
    left, values, right = torch.linalg.svd(update, full_matrices=False)
    a = layer.alphalora_A["default"].unflatten(0, (3, 4))
    b = layer.alphalora_B["default"].unflatten(1, (3, 4))
    for expert in range(3):
        turn = slice(expert, 4, 3)
        part = (left[:, turn] * values[turn]) @ right[turn]
        assert_same(layer.scaling["default"] * b[:, expert] @ a[expert], 3 * part, atol=1e-5)


@pytest.mark.parametrize("split", ["copy", "svd"])
def test_training_moves_the_experts_apart(tmp_path, split):
    saved_lora(tmp_path)
    model = started(tmp_path, init_split=split, top_k=3 if split == "svd" else 2).train()
    optimizer = torch.optim.SGD(trainable(model).values(), lr=0.1)
    forward(model)[1].backward()
    optimizer.step()
    moved = [p for n, p in trainable(model).items() if "_router" not in n and "up_proj" not in n]
    assert moved and all(parameter.grad.any() for parameter in moved)
    for layer in layers(model).values():
        experts = layer.alphalora_B["default"].unflatten(1, (-1, 4)).unbind(1)
        assert all(not torch.equal(experts[0], other) for other in experts[1:])


def test_a_target_that_the_lora_lacks_starts_as_usual(tmp_path):
    saved_lora(tmp_path)
    layer = layers(started(tmp_path))["model.layers.0.mlp.up_proj"]
    assert not layer.alphalora_B["default"].any() and layer.alphalora_A["default"].all()


def test_what_is_saved_needs_the_lora_no_more(tmp_path):
    before = saved_lora(tmp_path / "lora", modules_to_save=["lm_head"])
    mine = AlphaLoraConfig(
        init_from=str(tmp_path / "lora"),
        target_modules=["q_proj", "down_proj"],
        modules_to_save=["lm_head"],
    )
    model = get_peft_model(fresh("linear"), mine)
    assert_same(outputs(model), before, atol=2e-6)
    assert mine.init_from, "the caller's config makes a second model alike"
    assert_same(outputs(get_peft_model(fresh("linear"), mine)), before, atol=2e-6)
    model.save_pretrained(tmp_path / "out")
    assert not {k for k in json.loads((tmp_path / "out" / CONFIG).read_text()) if "init_" in k} - {
        "init_weights"
    }
    shutil.rmtree(tmp_path / "lora")
    for options in ({}, {"low_cpu_mem_usage": True}, {"config": model.peft_config["default"]}):
        loaded = PeftModel.from_pretrained(fresh("linear"), tmp_path / "out", **options)
        assert_same(outputs(loaded), outputs(model))
    model.add_adapter("other", model.peft_config["default"])


def test_a_second_adapter_starts_from_a_lora_and_the_first_stays(tmp_path):
    before = saved_lora(tmp_path, modules_to_save=["lm_head"])
    shape = {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"]}
    model = get_peft_model(fresh("linear"), AlphaLoraConfig(**shape))
    model.add_adapter("other", AlphaLoraConfig(init_from=str(tmp_path), **shape))
    assert_same(outputs(model), outputs(fresh("linear")))
    model.set_adapter("other")
    assert_same(outputs(model), before, atol=2e-6)


def test_weights_that_another_process_fills_in_are_left_alone(tmp_path):
    saved_lora(tmp_path)
    model = get_peft_model(
        fresh("linear").to("meta"),
        AlphaLoraConfig(init_from=str(tmp_path), target_modules=["q_proj", "down_proj"]),
    )
    assert all(parameter.is_meta for parameter in trainable(model).values())


NONE_IN_FIRST = counts("linear", MINE[:2]) | {FIRST: 0}


@pytest.mark.refused("PEFT", "experts started from a LoRA that they cannot repeat")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ["q_proj"]}, "layers.0.mlp.down_proj, which is no target.*lost"),
        ({"num_experts": NONE_IN_FIRST}, "layers.0.self_attn.q_proj, which gets no experts here"),
        ({"top_k": 1}, "down_proj, which has 4 experts here, and with top_k: 1.*top_k to 2"),
        ({"init_split": "svd"}, "over the 4 experts of .*down_proj.*top_k to 4.*init_split: copy"),
        ({"r": 3}, r"experts of rank 4 in .*_proj, which have rank 3.*\(lora_r\) to 4"),
        ({"r": 1, "init_split": "svd", "num_experts": 2}, "experts of rank 2 in"),
    ],
    ids=["target", "count", "top_k", "svd", "rank", "svd rank"],
)
def test_what_would_lose_the_function_is_refused(tmp_path, changes, message):
    saved_lora(tmp_path)
    refused(tmp_path, message, **changes)


def test_one_expert_alone_needs_no_routing(tmp_path):
    before = saved_lora(tmp_path)
    for split in ("copy", "svd"):
        shape = {"target_modules": ["q_proj", "down_proj"], "num_experts": 1}
        assert_same(
            outputs(started(tmp_path, top_k=1, init_split=split, **shape)), before, atol=2e-6
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora: True"),
        ({"bias": "lora_only"}, "bias: 'lora_only'"),
        ({"lora_bias": True}, "lora_bias: True"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"use_qalora": True}, "use_qalora"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4.*path_initial_model_for_weight"),
        ({"init_lora_weights": "olora"}, "init_lora_weights: 'olora'"),
        ({"peft_type": "LOHA"}, "a LOHA adapter, not a plain LoRA"),
        ({"peft_type": "ALPHALORA"}, "an AlphaLoRA adapter.*lora_model_dir"),
        ({"r": 5}, "damaged: its LoRA of .*down_proj has rank 4, and rank 5"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_adapters_are_refused_by_name(tmp_path, changes, message):
    saved_lora(tmp_path)
    edit(tmp_path, **changes)
    refused(tmp_path, f"init_from: .*{message}")


def test_whole_modules_must_be_kept(tmp_path):
    saved_lora(tmp_path, modules_to_save=["lm_head"])
    refused(tmp_path, "lm_head.weight in full.*Add lm_head to modules_to_save")
    edit_weights(tmp_path, lambda tensors: tensors.update(resized(tensors)))
    refused(tmp_path, r"lm_head.weight of shape \(9, 64\), and.*97", modules_to_save=["lm_head"])


def resized(tensors):
    return {key: tensor[:9].clone() for key, tensor in tensors.items() if "lm_head" in key}


def test_loras_of_other_layers_are_refused(tmp_path):
    saved_lora(tmp_path / "embedding", target_modules=["embed_tokens"])
    refused(tmp_path / "embedding", "embed_tokens.lora_embedding_A .a LoRA of an embedding")
    saved_lora(tmp_path / "conv")
    key = f"base_model.model.{FIRST}.lora_A.weight"
    edit_weights(tmp_path / "conv", lambda t: t.update({key: t[key][..., None].clone()}))
    refused(tmp_path / "conv", "q_proj.lora_A.weight .a LoRA of a convolution")


def test_another_base_models_lora_is_refused(tmp_path):
    saved_lora(tmp_path)
    key = f"base_model.model.{FIRST}.lora_A.weight"
    edit_weights(tmp_path, lambda t: t.update({key: t[key][:, :60].clone()}))
    refused(tmp_path, "another base model.*q_proj has 60 inputs and 64 outputs, and here 64 and 64")


@pytest.mark.parametrize(
    "harm", ["missing", "empty", "truncated", "nan", "half", "pickled", "json"]
)
def test_a_damaged_lora_is_refused(tmp_path, harm):
    folder = tmp_path / "lora"
    saved_lora(folder)
    file, key = folder / WEIGHTS, f"base_model.model.{FIRST}.lora_B.weight"
    message = {
        "missing": "lora is no directory",
        "empty": "no readable adapter_config.json",
        "json": "no readable adapter_config.json",
        "truncated": "adapter_model.safetensors is damaged",
        "nan": "q_proj is not finite",
        "half": r"damaged: A and B of .*q_proj have shapes \(4, 64\) and None",
        "pickled": "no adapter_model.safetensors, the only format",
    }[harm]
    if harm in ("missing", "empty"):
        shutil.rmtree(folder)
        if harm == "empty":
            folder.mkdir()
    elif harm == "json":
        (folder / CONFIG).write_text("{")
    elif harm == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif harm == "nan":
        edit_weights(folder, lambda tensors: tensors[key].fill_(torch.nan))
    elif harm == "half":
        edit_weights(folder, lambda tensors: tensors.pop(key))
    else:
        file.rename(folder / "adapter_model.bin")
    refused(folder, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_split": "half", "init_from": "x"}, "init_split must be one of copy, svd"),
        ({"init_split": "svd"}, "init_split has no effect without init_from"),
        ({"init_from": ""}, "init_from must be a directory"),
        ({"init_from": "x", "init_weights": False}, "leave init_weights true"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        AlphaLoraConfig(**changes)
