"""A model's layers, and the tensors that become their weights, are those of transformers."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, BertConfig, ViTConfig

from axolotl_alphalora.spectral import LiveWeights
from axolotl_alphalora.spectral.definition import (
    linear_layers,
    load_config,
    skeleton,
    stacked_weights,
    trained_class,
)
from axolotl_alphalora.spectral.weight_names import WeightNames
from helpers.checkpoints import CONFIGS, tiny_model


def test_the_skeleton_has_the_models_modules_and_holds_no_data(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    bare = skeleton(str(tmp_path))
    assert type(bare) is type(model)
    assert all(parameter.is_meta for parameter in bare.parameters())
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in bare.state_dict().items()} == shapes


def test_the_skeleton_of_a_quantised_checkpoint_is_plain(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert len(linear_layers(skeleton(str(tmp_path)))) == 14


@pytest.mark.parametrize("family", CONFIGS)
def test_linear_layers_are_those_in_numbered_blocks(family):
    model = tiny_model(family)
    layers = linear_layers(model)
    weights = dict(model.named_parameters())
    assert layers
    for name, (rows, columns) in layers.items():
        stored = tuple(weights[f"{name}.weight"].shape)
        assert stored == ((columns, rows) if family == "gpt2" else (rows, columns))
    assert not any("lm_head" in name or "embed" in name for name in layers)
    positions = [name for name, _ in model.named_modules() if name in layers]
    assert list(layers) == positions


def test_the_layers_of_a_llama_block_are_its_seven_projections():
    names = [name.removeprefix("model.layers.0.") for name in linear_layers(tiny_model("llama"))]
    assert names[:7] == [
        *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
        *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    ]


def test_text_models_are_causal_and_models_with_images_are_their_own_class():
    assert trained_class(CONFIGS["llama"], "x") is AutoModelForCausalLM
    assert trained_class(CONFIGS["llava"], "x") is AutoModelForImageTextToText
    with pytest.raises(ValueError, match="some/vit is a vit model, .* no language model head"):
        trained_class(ViTConfig(), "some/vit")


def test_a_model_without_a_readable_config_is_named(tmp_path):
    for content in (None, "{", '{"model_type": "unheard-of"}'):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=f"the model {tmp_path} cannot be opened"):
            load_config(str(tmp_path))


def names_of(model, keys):
    with torch.device("meta"):
        bare = type(model)(model.config)
    return WeightNames(bare, keys)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "bert"])
def test_keys_with_and_without_the_base_models_prefix_are_found(family):
    if family == "bert":
        model = AutoModelForCausalLM.from_config(
            BertConfig(
                vocab_size=64,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=48,
                is_decoder=True,
            )
        )
    else:
        model = tiny_model(family)
    base, whole = model.base_model, model
    for loaded, saved in [(whole, base), (base, whole)]:
        names = names_of(loaded, saved.state_dict())
        expected = {id(tensor): key for key, tensor in saved.state_dict(keep_vars=True).items()}
        layers = linear_layers(loaded)
        assert len(layers) >= 8
        for name in layers:
            key = expected[id(loaded.get_submodule(name).weight)]
            assert names.keys_of(name) == (key,), name
            assert not names.is_converted(name)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_modules_own_names_are_found_whatever_a_checkpoint_would_call_them(family):
    model = tiny_model(family)
    names = names_of(model, model.state_dict())
    for name in linear_layers(model):
        assert names.keys_of(name) == (f"{name}.weight",)
        assert not names.is_converted(name)


def test_a_tied_head_has_the_key_of_the_embedding():
    tied, untied = tiny_model("tied llama"), tiny_model("llama")
    keys = [key for key in untied.state_dict() if key != "lm_head.weight"]
    assert names_of(tied, keys).keys_of("lm_head") == ("model.embed_tokens.weight",)
    assert names_of(untied, keys).keys_of("lm_head") == ()
    assert names_of(untied, untied.state_dict()).keys_of("lm_head") == ("lm_head.weight",)


def test_what_is_not_stored_has_no_keys():
    model = tiny_model("llama")
    names = names_of(model, ["model.layers.0.mlp.up_proj.weight", "something.else"])
    assert names.keys_of("model.layers.0.mlp.up_proj") == ("model.layers.0.mlp.up_proj.weight",)
    assert names.keys_of("model.layers.1.mlp.up_proj") == ()
    assert names.keys_of("nothing") == ()


class ForeignLinear(torch.nn.Module):
    """A quantisation's own linear layer, which is no `torch.nn.Linear`."""

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features = 8, 4
        self.register_buffer("codes", torch.zeros(4, 8, dtype=torch.int8))


def test_a_linear_layer_of_a_foreign_class_is_listed_and_then_named_as_unreadable():
    block = torch.nn.ModuleDict({"q": ForeignLinear()})
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([block])})
    assert linear_layers(model) == {"layers.0.q": (4, 8)}
    with pytest.raises(TypeError, match="layers.0.q.*ForeignLinear"):
        LiveWeights(model).tensor("layers.0.q")


def test_stacked_experts_are_known_for_what_they_are():
    model = tiny_model("mixtral")
    stacked = stacked_weights(model)
    assert {name.partition("mlp.")[2] for name in stacked} == {
        "experts.gate_up_proj",
        "experts.down_proj",
    }
    assert not {name.rpartition(".")[0] for name in stacked} & set(linear_layers(model))
    assert stacked_weights(tiny_model("llama")) == {}


@pytest.mark.parametrize(
    "change", [{"hidden_act": "nothing"}, {"num_attention_heads": 0}, {"hidden_size": "wide"}]
)
def test_a_config_that_transformers_cannot_use_is_an_error_in_words(tmp_path, change):
    tiny_model("llama").config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=f"the model {tmp_path} cannot be opened"):
        skeleton(str(tmp_path))
