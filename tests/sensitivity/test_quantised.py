"""bitsandbytes layers, against the same model with their dequantised weights in plain layers."""

import copy

import pytest
import torch
from torch import nn

from axolotl_alphalora.sensitivity import measure_sensitivity

bitsandbytes = pytest.importorskip("bitsandbytes")


def _quantised(linear, kind):
    sizes = (linear.in_features, linear.out_features, linear.bias is not None)
    if kind == "nf4":
        layer = bitsandbytes.nn.Linear4bit(
            *sizes, compute_dtype=torch.float32, compress_statistics=True, quant_type="nf4"
        )
    else:
        layer = bitsandbytes.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu")


def _dequantised(layer):
    weight = layer.weight
    if isinstance(layer, bitsandbytes.nn.Linear4bit):
        return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).float()
    scale = weight.SCB if weight.SCB is not None else layer.state.SCB
    return weight.data.float() * (scale[:, None] / 127)


def _replace(model, names, build):
    for name in names:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, build(model.get_submodule(name)))
    return model


def _plain(layer):
    linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    linear.weight = nn.Parameter(_dequantised(layer))
    return linear


def _bytes(model):
    return {
        key: (value.dtype, value.detach().contiguous().view(torch.uint8).numpy().tobytes())
        for key, value in model.state_dict().items()
        if isinstance(value, torch.Tensor)
    }


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("training", [False, True])
def test_quantised_layers_have_the_squares_of_their_dequantised_weights(
    tiny, linears, sequence, kind, checkpointing, training
):
    """To float32's rounding also for int8: in training mode bitsandbytes' CPU kernel multiplies by
    the dequantised weights and does not quantise activations (on CUDA it does)."""
    model = tiny("llama")
    names = linears(model)
    _replace(model, names, lambda linear: _quantised(linear, kind)).train(training)
    plain = _replace(copy.deepcopy(model), names, _plain)
    before = _bytes(model)
    samples = [sequence(10), sequence(50, seed=1)]
    found = measure_sensitivity(model, names, samples, checkpointing=checkpointing)
    expected = measure_sensitivity(plain, names, samples)
    for name in names:
        assert found.squares[name] == pytest.approx(expected.squares[name], rel=1e-4, abs=0)
        assert min(found.squares[name]) > 0
    assert _bytes(model) == before


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_layers_that_are_no_targets_keep_their_bytes(tiny, linears, sequence, kind):
    """In eval mode the input of the first would have repacked it on some processors."""
    model = tiny("llama")
    names = linears(model)
    _replace(model, names, lambda linear: _quantised(linear, kind)).eval()
    before = _bytes(model)
    packed = {name: vars(model.get_submodule(name)).copy() for name in names if kind == "nf4"}
    measure_sensitivity(model, names[-1:], [sequence(10)])
    assert _bytes(model) == before
    for name, attributes in packed.items():
        assert vars(model.get_submodule(name)) == attributes
        quant_state = model.get_submodule(name).weight.quant_state
        assert not getattr(quant_state, "packing_format_for_cpu", False)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_bias_keeps_its_dtype(toy, sequence, kind):
    """bitsandbytes casts the bias of its layers to the input's dtype for good."""
    model = toy(lambda layers, x: layers[0](x), width=64)
    _replace(model, ["layers.0"], lambda linear: _quantised(linear, kind))
    model.layers[0].bias.data = model.layers[0].bias.data.bfloat16()
    before = _bytes(model)
    measure_sensitivity(model, ["layers.0"], [sequence(10)])
    assert _bytes(model) == before


@pytest.mark.skipif(
    not bitsandbytes.nn.modules.has_avx512bf16(), reason="packs on AVX512-BF16 processors only"
)
def test_weights_packed_for_inference_are_refused(tiny, linears, sequence):
    """Also where they are no target: nothing before them would have a gradient."""
    model = tiny("llama")
    *names, last = linears(model)
    _replace(model, [last], lambda linear: _quantised(linear, "nf4")).eval()
    with torch.no_grad():
        model(**sequence(10).inputs)
    with pytest.raises(ValueError, match=f"{last} has its 4-bit weights packed for inference"):
        measure_sensitivity(model, names, [sequence(10)])
