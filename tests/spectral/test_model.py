"""Whatever the family and the files, a checkpoint gives the weights that its loaded model has."""

import json
import warnings

import pytest
import torch

from axolotl_alphalora.spectral import (
    BaseModel,
    Cache,
    LiveWeights,
    MissingTensor,
    UnreadableCheckpoint,
    definition,
    measure,
    weight_names,
)
from axolotl_alphalora.spectral.cache import tensor_digest
from axolotl_alphalora.spectral.checkpoint import StoredTensors
from axolotl_alphalora.spectral.definition import linear_layers
from helpers.checkpoints import CONFIGS, opened, pickled, settled, tiny_model

STORED = ["whole", "sharded", "bin", "sharded bin", "base model"]


@pytest.fixture(scope="module")
def models():
    return {family: tiny_model(family) for family in CONFIGS}


def save(model, directory, how="whole"):
    if how == "base model":
        model.base_model.save_pretrained(directory)
        model.config.save_pretrained(directory)
    else:
        model.save_pretrained(directory, max_shard_size="20KB" if "sharded" in how else "1GB")
    if "bin" in how:
        pickled(directory)


@pytest.mark.parametrize("how", STORED)
@pytest.mark.parametrize("family", CONFIGS)
def test_files_and_loaded_model_give_the_same_weights_and_results(models, tmp_path, family, how):
    model = models[family]
    save(model, tmp_path, how)
    assert bool(list(tmp_path.glob("*-of-*"))) == ("sharded" in how)
    weights, shapes = opened(tmp_path)
    live = LiveWeights(model)
    assert shapes == linear_layers(model)
    for name in shapes:
        assert torch.equal(weights.tensor(name), live.tensor(name)), name
    assert weights.description["source"] == ("bin" if "bin" in how else "safetensors")
    found, expected = measure(weights, shapes), measure(live, shapes)
    assert found.matrices == expected.matrices
    assert found.scores == expected.scores


def test_what_choosing_layers_warns_of_is_warned_of_each_time(models, tmp_path):
    save(models["llama"], tmp_path)

    def choose(skeleton):
        warnings.warn("some layers cannot be adapted", stacklevel=1)
        return {"a": (1, 2)}

    for _ in range(2):
        base = BaseModel(str(tmp_path), cache=Cache(tmp_path / "cache"))
        with pytest.warns(UserWarning, match="some layers cannot be adapted"):
            assert base.layers(choose, "by a test") == {"a": (1, 2)}


def test_names_in_the_file_may_differ_from_the_modules(models, tmp_path):
    """In the file `language_model.model…`, in the model `model.language_model…`."""
    save(models["gemma3"], tmp_path)
    keys = BaseModel(str(tmp_path)).weights({})._stored.infos
    name = "model.language_model.layers.1.mlp.up_proj"
    assert f"{name}.weight" not in keys
    weights = BaseModel(str(tmp_path)).weights({name: (48, 32)})
    assert "'language_model.model.layers.1.mlp.up_proj.weight'" in weights.location(name)


def test_fused_projections_that_the_model_keeps_are_one_layer(models, tmp_path):
    save(models["phi3"], tmp_path)
    _, shapes = opened(tmp_path)
    assert shapes["model.layers.0.self_attn.qkv_proj"] == (64, 32)
    assert shapes["model.layers.0.mlp.gate_up_proj"] == (96, 32)


def test_fused_tensors_that_the_model_splits_are_split(models, tmp_path):
    save(models["hrm"], tmp_path)
    weights, shapes = opened(tmp_path)
    name = "model.H_module.layers.1.self_attn.k_proj"
    assert "attn.gqkv_proj.weight" in weights.location(name)
    assert weights.tensor(name).shape == shapes[name]


def test_experts_that_are_no_linear_layers_are_left_out(models, tmp_path):
    save(models["mixtral"], tmp_path)
    _, shapes = opened(tmp_path)
    assert {name.split(".")[3] for name in shapes} == {"self_attn"}


@pytest.mark.parametrize("how", STORED)
def test_a_tied_head_reads_the_embedding(models, tmp_path, how):
    save(models["tied llama"], tmp_path, how)
    weights = BaseModel(str(tmp_path)).weights({"lm_head": (64, 32)})
    assert "model.embed_tokens.weight" in weights.location("lm_head") or how == "base model"
    expected = models["tied llama"].model.embed_tokens.weight
    assert torch.equal(weights.tensor("lm_head"), expected)


def head(model):
    return {"lm_head": tuple(model.lm_head.weight.shape)}


def test_layers_are_chosen_once_for_a_config_and_a_choice(models, tmp_path):
    save(models["llama"], tmp_path / "model")
    asked = []

    def choose(model):
        asked.append(model)
        return linear_layers(model)

    def layers(choice="linear", **options):
        base = BaseModel(str(tmp_path / "model"), cache=Cache(tmp_path / "cache"), **options)
        return base.layers(choose, choice)

    first = layers()
    assert layers() == first == linear_layers(models["llama"])
    assert list(layers()) == list(first)
    assert len(asked) == 1
    assert list(layers("another")) == list(first)
    assert len(asked) == 2
    layers(trust_remote_code=True)
    layers(trust_remote_code=True)
    assert len(asked) == 4
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 1}))
    assert list(layers()) == list(first)[:7]


def test_other_layers_are_looked_up_besides_those_known(models, tmp_path):
    save(models["llama"], tmp_path / "model")
    base = BaseModel(str(tmp_path / "model"), cache=Cache(tmp_path / "cache"))
    for shapes in (base.layers(linear_layers, "linear"), base.layers(head, "head")):
        weights = base.weights(shapes)
        for name in shapes:
            expected = models["llama"].get_submodule(name).weight
            assert torch.equal(weights.tensor(name), expected)


@pytest.mark.parametrize("change", ["config", "keys"])
def test_a_changed_checkpoint_is_looked_up_again(models, tmp_path, change):
    """The tied model's config, and then its keys, are replaced by those of the untied one."""
    cache = Cache(tmp_path / "cache")

    def location():
        base = BaseModel(str(tmp_path / "model"), cache=cache)
        return base.weights(head(models["llama"])).location("lm_head")

    save(models["tied llama"], tmp_path / "model")
    config = (tmp_path / "model" / "config.json").read_bytes()
    assert "'model.embed_tokens.weight'" in location()
    if change == "config":
        models["llama"].config.save_pretrained(tmp_path / "model")
        with pytest.raises(MissingTensor, match="lm_head"):
            location()
    else:
        save(models["llama"], tmp_path / "model")
        (tmp_path / "model" / "config.json").write_bytes(config)
        assert "'lm_head.weight'" in location()


def test_conversions_are_prepared_once_for_all_layers(models, tmp_path, monkeypatch):
    save(models["hrm"], tmp_path)
    made = []
    initialise = weight_names.WeightNames.__init__
    monkeypatch.setattr(
        weight_names.WeightNames,
        "__init__",
        lambda self, *arguments: made.append(self) or initialise(self, *arguments),
    )
    weights, shapes = opened(tmp_path)
    for name in shapes:
        weights.tensor(name)
    assert len(made) <= 2


def forbid(monkeypatch, *what):
    def refuse(*_, **__):
        raise AssertionError("not needed")

    for owner, name in what:
        monkeypatch.setattr(owner, name, refuse)


@pytest.mark.usefixtures("combinations")
@pytest.mark.parametrize("how", ["whole", "sharded", "sharded bin"])
@pytest.mark.parametrize("family", ["llama", "hrm"])
def test_a_second_measurement_reads_no_tensor_and_builds_no_model(
    models, tmp_path, monkeypatch, family, how
):
    cache = Cache(tmp_path / "cache")
    save(models[family], tmp_path / "model", how)
    settled(tmp_path / "model")
    weights, shapes = opened(tmp_path / "model", cache)
    first = measure(weights, shapes, cache=cache)
    plain = measure(opened(tmp_path / "model")[0], shapes)
    forbid(
        monkeypatch,
        (StoredTensors, "read"),
        (definition, "skeleton"),
        (weight_names.WeightNames, "__init__"),
    )
    weights, again = opened(tmp_path / "model", cache)
    assert again == shapes
    second = measure(weights, shapes, cache=cache)
    for found in (second, plain):
        assert found.matrices == first.matrices
        assert found.scores == first.scores
        assert found.description == first.description


def test_a_read_without_a_cache_is_no_help_to_the_next(models, tmp_path, monkeypatch):
    save(models["llama"], tmp_path)
    settled(tmp_path)
    measure(*opened(tmp_path))
    forbid(monkeypatch, (StoredTensors, "read"))
    weights, shapes = opened(tmp_path)
    with pytest.raises(AssertionError, match="not needed"):
        measure(weights, shapes)


def test_the_same_weights_in_other_files_share_spectra_and_digest(models, tmp_path, monkeypatch):
    cache = Cache(tmp_path / "cache")
    digests = set()
    for how in STORED:
        save(models["llama"], tmp_path / how, how)
        weights, shapes = opened(tmp_path / how, cache)
        digests.add(measure(weights, shapes, cache=cache).description["digest"])
        forbid(monkeypatch, (torch.linalg, "eigvalsh"))
    digests.add(measure(LiveWeights(models["llama"]), shapes, cache=cache).description["digest"])
    assert len(digests) == 1


def test_one_other_value_or_dtype_is_another_digest(models, tmp_path):
    model = tiny_model("llama")
    seen = {measure(LiveWeights(model), linear_layers(model)).description["digest"]}
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] += 1
    seen.add(measure(LiveWeights(model), linear_layers(model)).description["digest"])
    model.model.layers[1].mlp.up_proj.double()
    seen.add(measure(LiveWeights(model), linear_layers(model)).description["digest"])
    assert len(seen) == 3


@pytest.mark.parametrize("pause", ["none", "settled"])
def test_a_checkpoint_overwritten_with_as_many_bytes_is_measured_anew(tmp_path, pause):
    cache = Cache(tmp_path / "cache")
    found, expected = [], []
    for seed in range(3):
        model = tiny_model("llama", seed)
        model.save_pretrained(tmp_path / "model")
        if pause == "settled":
            settled(tmp_path / "model", 60 - seed)
        weights, shapes = opened(tmp_path / "model", cache)
        found.append(measure(weights, shapes, cache=cache).matrices)
        expected.append(measure(LiveWeights(model), shapes).matrices)
    assert found == expected
    assert found[0] != found[1] != found[2]


def test_a_quantised_checkpoint_is_not_loaded_against_the_callers_will(models, tmp_path):
    save(models["llama"], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    base = BaseModel(str(tmp_path))
    assert base.quantization == "gptq"
    with pytest.raises(UnreadableCheckpoint, match=r"quantised \(gptq\): its files hold codes"):
        base.weights(linear_layers(base.skeleton), load=False)


def test_full_precision_needs_no_loading(models, tmp_path):
    save(models["llama"], tmp_path)
    base = BaseModel(str(tmp_path))
    assert base.quantization is None
    name = "model.layers.0.mlp.up_proj"
    weights = base.weights({name: (48, 32)}, load=False)
    expected = models["llama"].get_submodule(name).weight
    assert weights.identify(name, weights.tensor(name)) == tensor_digest(expected)


def test_an_absent_gguf_file_is_named(tmp_path):
    with pytest.raises(UnreadableCheckpoint, match=r"there is no file .*/absent\.gguf"):
        BaseModel(str(tmp_path / "absent.gguf"))


def test_a_config_of_another_model_than_the_files_is_named(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["intermediate_size"] += 8
    (tmp_path / "config.json").write_text(json.dumps(config))
    base = BaseModel(str(tmp_path))
    with pytest.raises(UnreadableCheckpoint, match=r"_proj.weight' of .* different models"):
        base.weights(base.layers(linear_layers, "linear"))
