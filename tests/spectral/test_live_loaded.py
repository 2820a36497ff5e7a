"""Checkpoints that only transformers can read give weights, dequantised, and never random ones."""

import json

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from axolotl_alphalora.spectral import (
    BaseModel,
    Cache,
    LiveWeights,
    UnreadableCheckpoint,
    measure,
)
from axolotl_alphalora.spectral.definition import linear_layers
from helpers.checkpoints import opened, settled, tiny_model
from helpers.models import tiny_llama_config

MODULE = "model.layers.1.mlp.up_proj"


def quantization(kind):
    if kind == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_llama_config())


@pytest.fixture(scope="module")
def quantised(model, tmp_path_factory):
    """Return the directory of the model, quantised by transformers and saved."""
    plain = tmp_path_factory.mktemp("plain")
    model.save_pretrained(plain)
    saved = {}

    def save(kind):
        if kind not in saved:
            saved[kind] = tmp_path_factory.mktemp(kind)
            loaded = AutoModelForCausalLM.from_pretrained(
                plain, quantization_config=quantization(kind), device_map={"": "cpu"}
            )
            loaded.save_pretrained(saved[kind])
        return saved[kind]

    return save


KINDS = {
    "nf4": ("bitsandbytes", "bnb 4-bit", 0.12),
    "int8": ("bitsandbytes", "bnb 8-bit", 0.01),
    "int8 torchao": ("torchao", "torchao Int8Tensor", 0.01),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_checkpoint_gives_nearly_the_original_weights(model, quantised, kind):
    source, name, error = KINDS[kind]
    weights, shapes = opened(quantised(kind))
    assert shapes == linear_layers(model)
    for module in shapes:
        original = model.get_submodule(module).weight
        difference = weights.tensor(module).float() - original
        assert 0 < difference.norm() / original.norm() < error, module
    assert weights.description == {
        "source": source,
        "dtype": "float32",
        "revision": None,
        "quantization": name,
    }
    assert weights.location(MODULE) == f"weight of module '{MODULE}' of {quantised(kind)}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_checkpoint_is_not_loaded_against_the_callers_will(quantised, kind):
    base = BaseModel(str(quantised(kind)))
    with pytest.raises(UnreadableCheckpoint, match=rf"quantised \({KINDS[kind][0]}\): .* codes"):
        base.weights({MODULE: (128, 64)}, load=False)


def test_the_model_is_loaded_once_and_let_go(quantised, monkeypatch):
    loaded = []
    load = BaseModel._load
    monkeypatch.setattr(BaseModel, "_load", lambda *args: loaded.append(1) or load(*args))
    weights, shapes = opened(quantised("int8"))
    assert not loaded
    measure(weights, shapes)
    assert len(loaded) == 1
    assert not any(isinstance(value, LiveWeights) for value in vars(weights).values())


def forbid_loading(monkeypatch):
    def refuse(*_):
        raise AssertionError("loaded")

    monkeypatch.setattr(BaseModel, "_load", refuse)


def test_what_was_measured_before_needs_no_loading(quantised, tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    weights, shapes = opened(quantised("int8"), cache)
    first = measure(weights, shapes, cache=cache)
    forbid_loading(monkeypatch)
    weights, _ = opened(quantised("int8"), cache)
    second = measure(weights, shapes, cache=cache)
    assert second.matrices == first.matrices
    assert second.description == first.description
    assert first.description["quantization"] == "bnb 8-bit"


def test_spectra_without_a_description_are_described_again(quantised, tmp_path):
    """As after a run that was killed before it could write the description down."""
    cache = Cache(tmp_path)
    weights, shapes = opened(quantised("int8"), cache)
    first = measure(weights, shapes, cache=cache)
    (entry,) = [path for path in (tmp_path / "loaded").rglob("*") if path.is_file()]
    entry.unlink()
    weights, _ = opened(quantised("int8"), cache)
    assert measure(weights, shapes, cache=cache).description == first.description


def test_the_description_covers_layers_read_now_and_before(quantised, tmp_path):
    cache = Cache(tmp_path)
    base = BaseModel(str(quantised("int8")), cache=cache)
    shapes = {MODULE: (128, 64)}
    measure(base.weights(shapes), shapes, cache=cache)
    shapes["lm_head"] = (97, 64)
    found = measure(base.weights(shapes), shapes, cache=cache).description
    assert found["quantization"] == "bnb 8-bit"
    assert found["dtype"] == "float32"


def test_other_codes_are_other_weights(quantised, tmp_path):
    directory, cache = tmp_path / "model", Cache(tmp_path / "cache")
    directory.mkdir()
    for file in quantised("int8").iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    settled(directory)
    weights, shapes = opened(directory, cache)
    first = measure(weights, shapes, cache=cache)
    stored = load_file(directory / "model.safetensors")
    stored[f"{MODULE}.weight"] = stored[f"{MODULE}.weight"].flip(0) // 2
    save_file(stored, directory / "model.safetensors", {"format": "pt"})
    weights, _ = opened(directory, cache)
    second = measure(weights, shapes, cache=cache)
    changed = [
        before.module
        for before, after in zip(first.matrices, second.matrices, strict=True)
        if before.alpha != after.alpha
    ]
    assert changed == [MODULE]
    assert first.description["digest"] != second.description["digest"]


def declared(directory, quantization):
    tiny_model("llama").save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = quantization
    (directory / "config.json").write_text(json.dumps(config))
    return opened(directory)


NOT_INSTALLED = ["aqlm", "auto-round", "eetq", "quark", "spqr", "vptq"]


@pytest.mark.parametrize("method", NOT_INSTALLED)
def test_a_method_whose_package_is_missing_is_named(tmp_path, method):
    weights, shapes = declared(tmp_path, {"quant_method": method, "bits": 4})
    with pytest.raises(UnreadableCheckpoint, match=rf"cannot load {tmp_path} \({method}\): "):
        measure(weights, shapes)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_gptq_and_awq_without_gptqmodel_are_named(tmp_path, method):
    try:
        import gptqmodel  # noqa: F401
    except ImportError:
        weights, shapes = declared(tmp_path, {"quant_method": method, "bits": 4})
        with pytest.raises(
            UnreadableCheckpoint, match=rf"{tmp_path} \({method}\): .*needs gptqmodel"
        ):
            measure(weights, shapes)
    else:
        pytest.skip("gptqmodel is installed")


def test_a_config_without_a_method_is_refused(tmp_path):
    weights, shapes = declared(tmp_path, {"bits": 4})
    with pytest.raises(UnreadableCheckpoint, match=r"\(unnamed method\): .*no `quant_method`"):
        measure(weights, shapes)


@pytest.mark.parametrize(
    ("config", "dtype", "said"),
    [
        (
            {"quant_method": "frobnicate"},
            torch.int8,
            "does not know the method",
        ),
        ({"quant_method": "fp8"}, torch.float8_e4m3fn, "holds codes, and there are no scales"),
    ],
)
def test_codes_under_the_weights_name_are_not_taken_for_weights(tmp_path, config, dtype, said):
    """Transformers casts them to floats, with a warning at most."""
    declared(tmp_path, config)
    stored = load_file(tmp_path / "model.safetensors")
    stored = {k: v.to(dtype) if ".layers." in k and v.ndim == 2 else v for k, v in stored.items()}
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    weights, shapes = opened(tmp_path)
    with pytest.raises(UnreadableCheckpoint, match=said):
        measure(weights, shapes)


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def interleaved(weight, heads):
    """Order the rows of a query or key projection as llama.cpp does for its rotary embedding."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, -1)


def write_gguf(model, path, quantise, without=()):
    config = model.config
    file = gguf.GGUFWriter(str(path), "llama")
    file.add_block_count(config.num_hidden_layers)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_dimension_count(config.head_dim)
    file.add_vocab_size(config.vocab_size)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for key, tensor in model.state_dict().items():
        module = key.removesuffix(".weight")
        if module in without:
            continue
        block = module.split(".")[2] if "layers" in module else None
        name = GGUF_NAMES[module.split(".", 3)[3] if block else module]
        if module.rpartition(".")[2] in heads:
            tensor = interleaved(tensor, heads[module.rpartition(".")[2]])
        values, kind = tensor.contiguous().numpy(), None
        if quantise and block and tensor.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            values = gguf.quants.quantize(values, kind)
        full = f"blk.{block}.{name}.weight" if block else f"{name}.weight"
        file.add_tensor(full, values, raw_dtype=kind)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


@pytest.mark.parametrize("quantise", [False, True])
def test_a_gguf_file_gives_the_weights_of_the_model(model, tmp_path, quantise):
    path = write_gguf(model, tmp_path / "tiny.gguf", quantise)
    base = BaseModel(str(path))
    assert base.quantization == "gguf"
    shapes = base.layers(linear_layers, "linear")
    assert shapes == linear_layers(model)
    weights = base.weights(shapes)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name in shapes:
        expected = model.get_submodule(name).weight.detach()
        if quantise:
            codes = gguf.quants.quantize(expected.numpy(), kind)
            expected = torch.from_numpy(gguf.quants.dequantize(codes, kind))
        assert torch.equal(weights.tensor(name), expected), name
    assert weights.description == {
        "source": "gguf",
        "dtype": "float32",
        "revision": None,
        "quantization": None,
    }


def test_a_gguf_file_measured_before_needs_no_loading(model, tmp_path, monkeypatch):
    cache = Cache(tmp_path / "cache")
    path = write_gguf(model, tmp_path / "tiny.gguf", quantise=True)
    shapes = linear_layers(model)
    first = measure(BaseModel(str(path), cache=cache).weights(shapes), shapes, cache=cache)
    forbid_loading(monkeypatch)
    moved = path.rename(tmp_path / "moved.gguf")
    second = measure(BaseModel(str(moved), cache=cache).weights(shapes), shapes, cache=cache)
    assert second.matrices == first.matrices
    assert second.description == first.description


def test_a_tensor_that_a_gguf_file_lacks_does_not_become_a_random_weight(model, tmp_path):
    path = write_gguf(model, tmp_path / "tiny.gguf", False, without=[MODULE])
    weights = BaseModel(str(path)).weights({MODULE: (128, 64)})
    with pytest.raises(UnreadableCheckpoint, match=rf"tiny\.gguf \(gguf\): .*no '{MODULE}\.weight"):
        weights.tensor(MODULE)


def test_a_gguf_file_is_not_loaded_against_the_callers_will(model, tmp_path):
    path = write_gguf(model, tmp_path / "tiny.gguf", quantise=True)
    with pytest.raises(UnreadableCheckpoint, match=r"tiny\.gguf is quantised \(gguf\)"):
        BaseModel(str(path)).weights(linear_layers(model), load=False)


def test_a_gguf_file_is_dequantised_in_the_hosts_memory(model, tmp_path, monkeypatch):
    """In fp32 it may be larger than the GPU, of which there is none here."""
    path = write_gguf(model, tmp_path / "tiny.gguf", quantise=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    weight = BaseModel(str(path)).weights({MODULE: (128, 64)}).tensor(MODULE)
    assert weight.device.type == "cpu" and weight.dtype == torch.float32


def test_a_damaged_gguf_file_is_named(model, tmp_path):
    path = write_gguf(model, tmp_path / "tiny.gguf", quantise=True)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="tiny.gguf"):
        weights = BaseModel(str(path)).weights({MODULE: (128, 64)})
        weights.tensor(MODULE)
