"""What PEFT promises of every method: the adapter and its base, saving, loading and copying."""

import copy
import json

import pytest
import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors import safe_open

from axolotl_alphalora.adapter import AlphaLoraConfig
from helpers import reference
from helpers.kinds import (
    KINDS,
    adapted,
    assert_same,
    config,
    every_kind,
    fresh,
    layers,
    move,
    outputs,
    trainable,
)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("linear", marks=pytest.mark.works("PEFT", "nn.Linear")),
        pytest.param("conv1d", marks=pytest.mark.works("PEFT", "transformers' Conv1D")),
        pytest.param(
            "custom", marks=pytest.mark.works("PEFT", "any nn.Module", "no task type, no config")
        ),
        pytest.param(
            "4-bit", marks=pytest.mark.works("Quantised bases", "bitsandbytes 4-bit (nf4)")
        ),
        pytest.param("8-bit", marks=pytest.mark.works("Quantised bases", "bitsandbytes 8-bit")),
        pytest.param(
            "torchao", marks=pytest.mark.works("Quantised bases", "torchao int8 weight-only")
        ),
    ],
)
def test_a_new_adapter_is_the_identity_and_a_moved_one_adds_its_experts(kind):
    before = outputs(fresh(kind))
    assert_same(outputs(adapted(kind, init_weights=True)), before)
    model = adapted(kind)
    seen = {}
    for name, layer in layers(model).items():
        layer.register_forward_hook(
            lambda layer, args, out, name=name: seen.update({name: (layer, args[0], out)})
        )
    after = outputs(model)
    assert not torch.allclose(after, before)
    assert len(seen) == 4
    for layer, x, out in seen.values():
        parts = [layer.part(p, "default") for p in layer.adapter_layer_names]
        with torch.no_grad():
            added = reference.expert_mixture(x, *parts, num_experts=3, rank=4, top_k=2, scaling=4.0)
            assert_same(out, layer.base_layer(x) + added, atol=1e-4)
    assert_same(outputs(model), after)


@pytest.mark.works("PEFT", "disable_adapter, unload")
@every_kind
def test_disabling_and_unloading_give_back_the_base_to_the_bit(kind):
    base = fresh(kind)
    before = outputs(base)
    keys, types = list(base.state_dict()), [type(m) for m in base.modules()]
    model = get_peft_model(base, config(kind))
    after = outputs(model)
    assert not torch.allclose(after, before)
    with model.disable_adapter():
        assert_same(outputs(model), before)
    assert_same(outputs(model), after)
    bare = model.unload()
    assert_same(outputs(bare), before)
    assert list(bare.state_dict()) == keys
    assert [type(m) for m in bare.modules()] == types
    assert not bare._forward_hooks and not bare._forward_pre_hooks


@pytest.mark.works("PEFT", "save and load", "safetensors, low_cpu_mem_usage, modules_to_save")
@every_kind
def test_a_saved_adapter_comes_back(kind, tmp_path):
    model = adapted(kind, modules_to_save=[KINDS[kind].head], lora_dropout=0.1)
    move(model)
    expected = outputs(model)
    with model.disable_adapter():
        assert_same(outputs(model), outputs(fresh(kind)))
    model.save_pretrained(tmp_path)
    files = {f.name for f in tmp_path.iterdir()}
    assert files == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        keys = set(file.keys())
    assert keys == set(get_peft_model_state_dict(model))
    assert all("alphalora_" in key or f".{KINDS[kind].head}." in key for key in keys)
    saved = json.loads((tmp_path / "adapter_config.json").read_text(), parse_constant=pytest.fail)
    assert saved["peft_type"] == "ALPHALORA" and set(saved["num_experts"]) == set(layers(model))
    assert isinstance(PeftConfig.from_pretrained(tmp_path), AlphaLoraConfig)
    for options in ({}, {"low_cpu_mem_usage": True}, {"is_trainable": True}):
        loaded = PeftModel.from_pretrained(fresh(kind), tmp_path, **options)
        assert_same(outputs(loaded), expected)
        assert not any(p.is_meta for p in loaded.parameters())
        wanted = set(trainable(model)) if options.get("is_trainable") else set()
        assert set(trainable(loaded)) == wanted


@pytest.mark.works("PEFT", "several adapters", "added, loaded beside, switched, deleted")
@every_kind
def test_adapters_of_other_counts_do_not_touch_each_other(kind, tmp_path):
    first, second = adapted(kind), adapted(kind, seed=4, num_experts=5, r=2, top_k=1)
    wanted = {"default": outputs(first), "other": outputs(second)}
    second.save_pretrained(tmp_path)
    first.load_adapter(tmp_path, "other", low_cpu_mem_usage=True)
    first.add_adapter("unused", config(kind, num_experts=1))
    for name in ("default", "other", "default"):
        first.set_adapter(name)
        assert_same(outputs(first), wanted[name])
        assert all(n.endswith(f".{name}") for n in trainable(first)) and trainable(first)
    first.delete_adapter("unused")
    first.set_adapter("other")
    first.delete_adapter("default")
    assert_same(outputs(first), wanted["other"])
    assert not [n for n in first.state_dict() if n.endswith((".default", ".unused"))]


@pytest.mark.refused("PEFT", "merging")
@every_kind
def test_merging_is_refused_and_leaves_the_model_alone(kind):
    model = adapted(kind)
    before = outputs(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        for options in ({}, {"safe_merge": True}, {"adapter_names": ["default"]}):
            with pytest.raises(ValueError, match="cannot be merged into the base weights"):
                merge(**options)
    for layer in layers(model).values():
        with pytest.raises(NotImplementedError, match="cannot be merged into the base weights"):
            layer.merge()
        assert not layer.merged
    model.unmerge_adapter()
    assert_same(outputs(model), before)


@pytest.mark.works("PEFT", "inject_adapter_in_model, get/set_peft_model_state_dict")
@every_kind
def test_an_adapter_injected_without_a_peft_model_is_the_same_one(kind):
    model = adapted(kind)
    state = get_peft_model_state_dict(model)
    assert not any("default" in key for key in state)
    bare = inject_adapter_in_model(config(kind), fresh(kind), "other")
    assert not torch.allclose(outputs(bare), outputs(model))
    result = set_peft_model_state_dict(bare, state, "other")
    assert not result.unexpected_keys
    assert_same(outputs(bare), outputs(model))
    back = get_peft_model_state_dict(bare, adapter_name="other")
    assert {f"base_model.model.{key}" for key in back} == set(state)


@pytest.mark.works("PEFT", "layers_to_transform, exclude_modules")
@every_kind
def test_blocks_and_modules_can_be_left_out(kind):
    up, down = KINDS[kind].targets
    blocks = {"layers_to_transform": [1], "layers_pattern": KINDS[kind].blocks}
    names = list(layers(adapted(kind, **blocks)))
    assert len(names) == 2 and all(f"{KINDS[kind].blocks}.1." in name for name in names)
    names = list(layers(adapted(kind, **blocks, target_modules="all-linear")))
    assert names and all(f"{KINDS[kind].blocks}.1." in name for name in names)
    names = list(layers(adapted(kind, exclude_modules=[up])))
    assert len(names) == 2 and all(name.endswith(down) for name in names)
    every = layers(adapted(kind, target_modules="all-linear", exclude_modules=rf".*\.0\..*{up}"))
    assert [name for name in every if name.endswith(up)] == [
        name for name in layers(adapted(kind)) if name.endswith(up) and ".1." in name
    ]
    assert sum(name.endswith(down) for name in every) == 2


@pytest.mark.works("PEFT", "deepcopy")
@every_kind
def test_a_deep_copy_is_a_model_of_its_own(kind):
    model = adapted(kind)
    before = outputs(model)
    twin = copy.deepcopy(model)
    assert_same(outputs(twin), before)
    move(twin)
    assert_same(outputs(model), before)
    assert not torch.allclose(outputs(twin), before)
    twin.add_adapter("other", config(kind))
    assert len(twin.get_base_model()._forward_hooks) == 1
    bare = twin.unload()
    assert not bare._forward_hooks and model.get_base_model()._forward_hooks
