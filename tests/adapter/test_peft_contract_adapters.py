"""Adapters beside each other, in each other's way, and what PEFT can do with LoRA alone."""

import copy
import json
import pickle

import pytest
import torch
from peft import (
    PeftConfig,
    PeftModel,
    convert_to_lora,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
)
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from axolotl_alphalora.adapter import AlphaLoraConfig
from axolotl_alphalora.adapter.model import AlphaLoraModel
from helpers.hosts import needs_add_adapter_of_transformers
from helpers.kinds import (
    X,
    adapted,
    assert_same,
    config,
    fresh,
    layers,
    move,
    outputs,
    trainable,
)

FIRST = "model.layers.0.self_attn.q_proj"


def hooks(model):
    return len(model._forward_hooks) + len(model._forward_pre_hooks)


@pytest.mark.refused("PEFT", "adapters of mixed types in one model (mixed=True)")
def test_a_mixed_model_is_refused_by_name():
    base = fresh("linear")
    with pytest.raises(ValueError, match="'ALPHALORA' is not compatible with the `PeftMixedModel`"):
        get_peft_model(base, config("linear"), mixed=True)
    assert not layers(base) and not hooks(base)


@pytest.mark.refused("PEFT", "hot-swapping")
def test_hot_swapping_is_refused_by_name(tmp_path):
    model = adapted("linear")
    before = outputs(model)
    adapted("linear", seed=4).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Hotswapping only supports LORA but ALPHALORA"):
        hotswap_adapter(model, tmp_path, "default")
    with pytest.raises(ValueError, match="No adapter layers found"):
        prepare_model_for_compiled_hotswap(model, target_rank=8)
    assert_same(outputs(model), before)


@pytest.mark.refused("PEFT", "conversion to LoRA, weighted sums of adapters")
def test_what_needs_one_matrix_per_module_is_refused():
    model = adapted("linear")
    with pytest.raises(TypeError, match="do not support LoRA conversion.*AlphaLoraLayer"):
        convert_to_lora(model, rank=8)
    with pytest.raises(AttributeError, match="add_weighted_adapter"):
        model.add_weighted_adapter(["default"], [1.0], "sum")


def test_a_second_adapter_that_does_not_fit_leaves_the_first_one_alone():
    model = adapted("linear")
    before = outputs(model)
    with pytest.raises(ValueError, match="nowhere.*matches no module"):
        model.add_adapter("other", config("linear", target_modules=["nowhere"]))
    assert list(model.peft_config) == ["default"] and len(layers(model)) == 4
    assert model.get_model_status().available_adapters == ["default"]
    assert_same(outputs(model), before)


def test_unknown_and_doubled_names_are_refused(tmp_path):
    model = adapted("linear")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="nobody not found"):
        model.set_adapter("nobody")
    with pytest.raises(ValueError, match="nobody does not exist"):
        model.delete_adapter("nobody")
    with pytest.raises(ValueError, match=r"current supported adapter names are \['default'\]"):
        model.save_pretrained(tmp_path, selected_adapters=["nobody"])
    with pytest.raises(ValueError, match="'default' already exists"):
        model.add_adapter("default", config("linear"))


@pytest.mark.works("PEFT", "several adapters", "added, loaded beside, switched, deleted")
def test_deleting_the_active_adapter_activates_another_and_the_last_leaves_the_base():
    model = adapted("linear")
    before = outputs(model)
    model.add_adapter("other", config("linear", num_experts=1))
    model.set_adapter("other")
    with pytest.warns(UserWarning, match="Setting active adapter to default"):
        model.delete_adapter("other")
    assert model.active_adapters == ["default"]
    assert_same(outputs(model), before)
    model.delete_adapter("default")
    assert model.active_adapters == [] and not trainable(model)
    assert_same(outputs(model.base_model.model), outputs(fresh("linear")))


@pytest.mark.parametrize("name", ["model", "0", "layers", "q_proj", "weight"])
def test_a_name_by_which_adapters_cannot_be_told_apart_is_refused_beside_another(name, tmp_path):
    model = adapted("linear")
    with pytest.raises(ValueError, match=f"beside another cannot be called '{name}'"):
        model.add_adapter(name, config("linear"))
    assert list(model.peft_config) == ["default"]
    shared = fresh("linear")  # a model of transformers keeps its adapters' settings in such a place
    shared.peft_config = {"default": config("linear")}
    with (
        pytest.warns(UserWarning, match="Already found"),
        pytest.raises(ValueError, match=f"beside another cannot be called '{name}'"),
    ):
        AlphaLoraModel(shared, config("linear"), name)
    assert list(shared.peft_config) == ["default"]
    alone = get_peft_model(fresh("linear"), config("linear"), name)
    alone.save_pretrained(tmp_path)
    before = outputs(alone)
    with pytest.raises(ValueError, match=f"beside another cannot be called '{name}'"):
        alone.add_adapter("other", config("linear"))
    assert_same(outputs(alone), before)
    assert_same(outputs(PeftModel.from_pretrained(fresh("linear"), tmp_path / name)), before)


@pytest.mark.works("PEFT", "several adapters at once", "their outputs add up")
def test_two_active_adapters_add_up():
    model = adapted("linear")
    model.add_adapter("other", config("linear", num_experts=5, r=2, target_modules=["q_proj"]))
    layer, x = layers(model)[FIRST], X[0]
    base = layer.base_layer(x)
    alone = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        alone[name] = layer(x) - base
        assert alone[name].abs().max() > 1e-3
    model.base_model.set_adapter(["default", "other"])
    assert_same(layer(x), base + alone["default"] + alone["other"], atol=1e-5)
    assert {n.rpartition(".")[2] for n in trainable(model)} == {"default", "other"}


@pytest.mark.works("PEFT", "frozen adapters", "inference_mode, set_requires_grad")
def test_an_adapter_can_be_frozen():
    model = adapted("linear")
    names = set(trainable(model))
    model.set_adapter("default", inference_mode=True)
    assert not trainable(model)
    model.set_requires_grad("default")
    assert set(trainable(model)) == names


@pytest.mark.works("PEFT", "save and load", "safetensors, low_cpu_mem_usage, modules_to_save")
def test_only_the_selected_adapters_are_saved(tmp_path):
    model = adapted("linear")
    model.add_adapter("other", config("linear", num_experts=5))
    model.add_adapter("third", config("linear", num_experts=1))
    model.save_pretrained(tmp_path, selected_adapters=["other"])
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["other"]
    assert not (tmp_path / "adapter_config.json").exists()
    model.set_adapter("other")
    loaded = PeftModel.from_pretrained(fresh("linear"), tmp_path / "other")
    assert_same(outputs(loaded), outputs(model))


@pytest.mark.works("PEFT", "several adapters", "added, loaded beside, switched, deleted")
@pytest.mark.parametrize("first", [["q_proj", "down_proj"], "all-linear", ["lm_head"]])
def test_all_linear_means_the_same_for_a_second_adapter(first):
    model = adapted("linear", target_modules=first)
    model.add_adapter("other", config("linear", target_modules="all-linear", num_experts=2))
    wanted = layers(adapted("linear", target_modules="all-linear"))
    assert [n for n, layer in layers(model).items() if "other" in layer.num_experts] == [*wanted]


@pytest.mark.works("PEFT", "a second get_peft_model on the same base")
def test_a_second_call_under_the_same_name_replaces_the_adapter(tmp_path):
    base = fresh("linear")
    get_peft_model(base, config("linear", num_experts=5))
    with pytest.warns(UserWarning, match="for a second time"):
        model = get_peft_model(base, config("linear", num_experts=1, r=2))
    assert len(trainable(model)) == 4 * 2, "one expert has no router"
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh("linear"), tmp_path)
    assert_same(outputs(loaded), outputs(model))


@pytest.mark.works("PEFT", "a second get_peft_model on the same base")
def test_a_second_call_under_another_name_adds_an_adapter():
    base = fresh("linear")
    before = outputs(base)
    first = outputs(get_peft_model(base, config("linear", num_experts=5)))
    with pytest.warns(UserWarning, match="for a second time"):
        model = get_peft_model(base, config("linear"), "other")
    assert not torch.allclose(outputs(model), first)
    model.set_adapter("default")
    assert_same(outputs(model), first)
    bare = model.unload()
    assert_same(outputs(bare), before)
    assert not hooks(bare)


@needs_add_adapter_of_transformers
@pytest.mark.works("PEFT", "transformers' own adapter methods")
def test_transformers_own_methods(tmp_path):
    model = fresh("linear")
    before = outputs(model)
    torch.manual_seed(3)
    model.add_adapter(config("linear"), "mine")
    after = outputs(model)
    assert_same(after, outputs(adapted("linear")))
    assert model.active_adapters() == ["mine"] and len(trainable(model)) == 4 * 3
    model.disable_adapters()
    assert_same(outputs(model), before)
    model.enable_adapters()
    assert_same(outputs(model), after)
    model.save_pretrained(tmp_path)
    other = fresh("linear")
    other.load_adapter(tmp_path, "again")
    assert_same(outputs(other), after)
    other.add_adapter(config("linear", num_experts=1), "second")
    other.set_adapter("again")
    assert_same(outputs(other), after)
    other.delete_adapter(["again", "second"])
    assert_same(outputs(other), before)


def test_a_count_of_zero_leaves_a_target_alone():
    names = list(layers(adapted("linear")))
    counts = dict.fromkeys(names, 2) | {FIRST: 0}
    assert list(layers(adapted("linear", num_experts=counts))) == names[1:]


def test_weights_for_a_module_without_a_count_are_refused_by_name():
    state = get_peft_model_state_dict(adapted("linear"))
    state = {key.removeprefix("base_model.model."): value for key, value in state.items()}
    model = inject_adapter_in_model(config("linear"), fresh("linear"), state_dict=state)
    assert len(layers(model)) == 4
    fewer = config("linear", target_modules=["q_proj"])
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\.down_proj.*num_experts"):
        inject_adapter_in_model(fewer, fresh("linear"), state_dict=state)


def test_an_adapter_that_cannot_be_built_leaves_nothing_behind():
    base = fresh("linear")
    with pytest.raises(KeyError, match="module name can"):
        get_peft_model(base, config("linear"), "a.b")
    assert not layers(base) and not hooks(base)


@pytest.mark.works("Quantised bases", "torchao int8 weight-only")
@pytest.mark.parametrize("part", ["", "layers.1.mlp"], ids=["all", "some"])
def test_layers_that_torchao_quantised_without_transformers(part):
    base = fresh("linear")
    quantize_(base, Int8WeightOnlyConfig(version=2), lambda m, n: part in n and "_proj" in n)
    before = outputs(base)
    model = get_peft_model(base, config("linear", target_modules="all-linear", init_weights=True))
    assert len(layers(model)) == 14
    assert_same(outputs(model), before)


@pytest.mark.works("PEFT", "configs", "keys of a later version are ignored")
def test_a_config_comes_back_and_ignores_what_it_does_not_know(tmp_path):
    written = config(
        "linear",
        num_experts={FIRST: 3},
        target_modules=None,
        exclude_modules=["k_proj"],
        use_rslora=True,
        top_k=3,
        plan={"created": "today"},
    )
    written.save_pretrained(tmp_path)
    back = PeftConfig.from_pretrained(tmp_path)
    # PEFT marks what it saves as meant for inference.
    assert isinstance(back, AlphaLoraConfig)
    assert back.to_dict() == written.to_dict()
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"from_the_future": 1}))
    with pytest.warns(UserWarning, match="from_the_future"):
        assert AlphaLoraConfig.from_pretrained(tmp_path).to_dict() == written.to_dict()
    assert copy.deepcopy(written) == written


@pytest.mark.works("PEFT", "target_modules left out", "LoRA's defaults for the architecture")
def test_without_targets_those_of_lora_are_taken_where_peft_knows_any():
    names = layers(adapted("linear", target_modules=None))
    assert {name.rpartition(".")[2] for name in names} == {"q_proj", "v_proj"}
    names = layers(adapted("conv1d", target_modules=None))
    assert {name.rpartition(".")[2] for name in names} == {"c_attn"}
    with pytest.raises(ValueError, match="specify `target_modules`"):
        adapted("custom", target_modules=None)


@pytest.mark.works("PEFT", "pickle")
def test_a_pickled_model_is_a_model_of_its_own():
    # Models of transformers cannot be pickled, adapted or not.
    model = adapted("custom")
    twin = pickle.loads(pickle.dumps(model))
    assert_same(outputs(twin), outputs(model))
    move(twin)
    assert not torch.allclose(outputs(twin), outputs(model))
    assert not hooks(twin.unload()) and hooks(model.get_base_model())
