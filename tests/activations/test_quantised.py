"""A 4-bit base is measured as it is."""

import copy

import pytest
import torch
from torch import nn

from axolotl_alphalora.activations import measure_explained_variance

bitsandbytes = pytest.importorskip("bitsandbytes")


def quantised(model, names):
    """The model with nf4 layers, and its twin with their dequantised weights in plain layers."""
    packed, plain = copy.deepcopy(model), copy.deepcopy(model)
    for name in names:
        linear = model.get_submodule(name)
        sizes = (linear.in_features, linear.out_features, linear.bias is not None)
        layer = bitsandbytes.nn.Linear4bit(*sizes, compute_dtype=torch.float32, quant_type="nf4")
        layer.load_state_dict(linear.state_dict())
        layer = layer.to("cpu")
        weight = bitsandbytes.functional.dequantize_4bit(
            layer.weight.data, layer.weight.quant_state
        )
        packed.set_submodule(name, layer)
        twin = nn.Linear(*sizes[:2], bias=sizes[2])
        twin.weight.data.copy_(weight)
        plain.set_submodule(name, twin)
    return packed, plain


def test_nf4_is_measured_as_its_dequantised_weights_are(tiny, linears, sequence):
    names = linears(tiny("llama"))
    packed, plain = quantised(tiny("llama"), names)
    samples = [sequence(40, seed=i) for i in range(8)]
    found = measure_explained_variance(packed, names, samples, 8)
    expected = measure_explained_variance(plain, names, samples, 8)
    whole = measure_explained_variance(tiny("llama"), names, samples, 8)
    for name in names:
        assert found.ratios[name] == pytest.approx(expected.ratios[name], rel=1e-3)
    last = names[-1]
    assert found.ratios[last] != pytest.approx(whole.ratios[last], rel=1e-3)
    layer = packed.get_submodule(last)
    assert layer.weight.quant_state.shape == (64, 128)
    assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
