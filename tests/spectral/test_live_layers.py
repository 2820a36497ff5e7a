"""A layer's weight is what the layer multiplies by, for every known class, and codes for none."""

import pytest
import torch
from torch import nn
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from axolotl_alphalora.spectral import layers
from axolotl_alphalora.spectral.estimators import fit_power_law
from axolotl_alphalora.spectral.layers import layer_weight
from axolotl_alphalora.spectral.spectrum import pool, spectrum

ROWS, COLUMNS, GROUP = 128, 64, 32


def linear(weight=None, bias=True):
    torch.manual_seed(0)
    if weight is None:
        weight = torch.randn(ROWS, COLUMNS) / 8
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
    layer.weight.data = weight.clone()
    return layer


def copied(layer, quantised):
    quantised.load_state_dict(layer.state_dict())
    return quantised.to("cpu")


def four_bit(layer, **options):
    import bitsandbytes as bnb

    options = {"quant_type": "nf4", "compress_statistics": True} | options
    sizes = layer.in_features, layer.out_features
    return copied(
        layer,
        bnb.nn.Linear4bit(
            *sizes, bias=layer.bias is not None, compute_dtype=torch.float32, **options
        ),
    )


def eight_bit(layer):
    import bitsandbytes as bnb

    sizes = layer.in_features, layer.out_features
    bias = layer.bias is not None
    return copied(layer, bnb.nn.Linear8bitLt(*sizes, bias=bias, has_fp16_weights=False))


def torchao_int8(layer):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(layer, Int8WeightOnlyConfig())
    return layer


def torchao_float8(layer):
    from torchao.quantization import Float8WeightOnlyConfig, quantize_

    quantize_(layer, Float8WeightOnlyConfig())
    return layer


def hqq(layer):
    quantize = pytest.importorskip("hqq.core.quantize")
    return quantize.HQQLinear(
        layer,
        quantize.BaseQuantizeConfig(nbits=4, group_size=GROUP),
        compute_dtype=torch.float32,
        device="cpu",
        del_orig=False,
    )


def grouped(weight):
    """Return 4-bit scales and zero points of groups of columns, and the weight they allow."""
    groups = weight.reshape(len(weight), -1, GROUP)
    scales = ((groups.amax(-1) - groups.amin(-1)) / 15).half().float()
    zeros = (-groups.amin(-1) / scales).round().clamp(0, 15)
    codes = (groups / scales[..., None] + zeros[..., None]).round().clamp(0, 15)
    return scales, zeros, ((codes - zeros[..., None]) * scales[..., None]).view_as(weight)


def packed(module, class_name, layer, **options):
    pytest.importorskip("gptqmodel")
    qlinear = pytest.importorskip(f"gptqmodel.nn_modules.qlinear.{module}")
    scales, zeros, weight = grouped(layer.weight.data)
    layer.weight.data = weight
    made = getattr(qlinear, class_name)(
        bits=4,
        group_size=GROUP,
        sym=False,
        desc_act=False,
        in_features=layer.in_features,
        out_features=layer.out_features,
        bias=layer.bias is not None,
        **options,
    )
    made.pack(layer, scales, zeros, g_idx=torch.arange(layer.in_features) // GROUP)
    made.optimized = True  # compiling takes a minute and changes no value
    made.post_init()
    return made.eval()


def gptq(layer):
    return packed("torch", "TorchLinear", layer)


def awq(layer):
    return packed("torch_awq", "AwqTorchLinear", layer, register_buffers=True)


# The name of the quantisation, and the largest relative error (in Frobenius norm) of the class
# in its own arithmetic.
QUANTISED = {
    four_bit: ("bnb 4-bit", 0.12),
    eight_bit: ("bnb 8-bit", 0.012),
    torchao_int8: ("torchao Int8Tensor", 0.012),
    torchao_float8: ("torchao Float8Tensor", 0.04),
    hqq: ("hqq", 0.12),
    gptq: ("gptq", 0.12),
    awq: ("awq", 0.12),
}


@pytest.fixture(params=QUANTISED, ids=lambda make: make.__name__)
def make(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer", [nn.Linear(4, 6), Conv1D(6, 4)])
def test_a_plain_weight_is_given_as_it_is_stored(layer, dtype):
    layer = layer.to(dtype)
    weight, quantization = layer_weight("q", layer)
    assert weight.data_ptr() == layer.weight.data_ptr()
    assert weight.dtype == dtype
    assert weight.shape == ((4, 6) if isinstance(layer, Conv1D) else (6, 4))
    assert not weight.requires_grad
    assert quantization is None


@pytest.mark.parametrize("bias", [True, False])
def test_the_weight_is_what_the_layer_multiplies_by(make, bias):
    layer = make(linear(bias=bias))
    weight, quantization = layer_weight("q", layer)
    assert quantization == QUANTISED[make][0]
    assert weight.shape == (ROWS, COLUMNS)
    assert weight.is_floating_point()
    half = make in (gptq, awq)
    inputs = torch.randn(16, COLUMNS).to(torch.float16 if half else torch.float32)
    with torch.no_grad():
        outputs = layer(inputs)
    expected = inputs.float() @ weight.float().T
    if bias:
        expected += layer.bias.float()
    # int8 rounds the inputs too.
    tolerance = 0.02 if make is eight_bit else 2e-3
    assert (outputs - expected).norm() <= tolerance * expected.norm()


def test_the_weight_is_close_to_the_original(make):
    original = linear().weight.detach()
    weight, _ = layer_weight("q", make(linear()))
    error = (weight.float() - original).norm() / original.norm()
    assert 0 < error < QUANTISED[make][1]


def test_the_weight_has_no_trace_of_a_large_bias(make):
    """Taken out of half-precision outputs, a bias of 1000 would leave steps of a half behind."""
    plain, biased = linear(bias=False), linear()
    biased.bias.data = torch.linspace(-1000, 1000, ROWS)
    layer = make(biased)
    weight, _ = layer_weight("q", layer)
    assert torch.equal(weight, layer_weight("q", make(plain))[0])
    torch.testing.assert_close(layer.bias.float(), biased.bias.float(), rtol=1e-3, atol=0)


def test_reading_leaves_the_layer_as_it_was(make):
    layer, untouched = make(linear()), make(linear())
    layer_weight("q", layer)
    dtype = torch.float16 if make in (gptq, awq) else torch.float32
    inputs = torch.randn(4, COLUMNS, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(layer(inputs), untouched(inputs))


@pytest.mark.parametrize("class_of", [gptq, awq], ids=lambda make: make.__name__)
def test_packed_codes_give_the_weight_they_were_made_from(class_of, monkeypatch):

    layer = linear()
    expected = grouped(layer.weight.data)[2]
    made = class_of(layer)
    weight, _ = layer_weight("q", made)
    torch.testing.assert_close(weight.float(), expected, rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(layers, "_IDENTITY_ROWS", 24)
    assert torch.equal(layer_weight("q", made)[0], weight)


def test_a_packed_layer_without_scales_is_refused():
    pytest.importorskip("gptqmodel")
    layer = gptq(linear())
    layer.scales, layer.bias = None, None
    with pytest.raises(ValueError, match="'q' holds no scales"):
        layer_weight("q", layer)


def test_a_4_bit_weight_that_a_forward_pass_repacked_is_refused():
    layer = four_bit(linear())
    layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match="'q' has been repacked"):
        layer_weight("q", layer)


class SubclassedLinear(nn.Linear):
    pass


class SubclassedConv(Conv1D):
    pass


@pytest.mark.parametrize(
    "layer",
    [SubclassedLinear(4, 4), SubclassedConv(4, 4), nn.Embedding(4, 4), nn.Conv1d(4, 4, 1)],
    ids=lambda layer: type(layer).__name__,
)
def test_an_unknown_class_is_refused_by_name(layer):
    with pytest.raises(TypeError, match=f"module 'layers.0.q': .*{type(layer).__name__}"):
        layer_weight("layers.0.q", layer)


def test_a_subclass_of_a_quantised_layer_is_refused():
    import bitsandbytes as bnb

    class Own4bit(bnb.nn.Linear4bit):
        pass

    with pytest.raises(TypeError, match="Own4bit"):
        layer_weight("q", Own4bit(64, 64))


class WrappedTensor(torch.Tensor):
    pass


def test_foreign_tensors_and_codes_in_a_plain_layer_are_refused():
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.ones(4, 4).as_subclass(WrappedTensor))
    with pytest.raises(TypeError, match="module 'q': it is a WrappedTensor of torch.float32"):
        layer_weight("q", layer)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8):
        layer.weight = nn.Parameter(torch.ones(4, 4).to(dtype), requires_grad=False)
        with pytest.raises(TypeError, match=f"{dtype}, not a plain"):
            layer_weight("q", layer)


def test_a_weight_without_data_is_refused():
    import bitsandbytes as bnb

    layers = [nn.Linear(4, 4, device="meta"), bnb.nn.Linear4bit(64, 64, device="meta")]
    for layer in layers:
        with pytest.raises(ValueError, match="'q' is on the meta device and holds no data"):
            layer_weight("q", layer)


def test_a_weight_that_zero_3_has_taken_apart_is_refused():
    layer = nn.Linear(4, 4)
    layer.weight.data = torch.empty(0)
    with pytest.raises(ValueError, match="'q' is empty here .*alphalora plan"):
        layer_weight("q", layer)


KINDS = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
# Largest shift of a hill alpha over all 210 matrices of SmolLM2: 0.064 and 0.007.
SHIFTS = {four_bit: 0.07, eight_bit: 0.01}


@pytest.mark.parametrize("quantise", SHIFTS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_quantisation_hardly_changes_the_hill_alphas_of_a_real_model(smollm2, kind, quantise):
    original = smollm2[f"blk.11.{kind}.weight"]()
    weight, _ = layer_weight(kind, quantise(linear(original, bias=False)))
    before, after = (
        fit_power_law(pool(spectrum(each)[None], tuple(each.shape)), "hill").alpha
        for each in (original, weight)
    )
    assert 0 < abs(before - after) <= SHIFTS[quantise]


def test_a_linear_layer_of_a_transformers_model_is_read_and_another_subclass_is_not():
    """Falcon's computes its product by hand, and stores what `torch.nn.Linear` does."""
    layer = FalconLinear(COLUMNS, ROWS, bias=False)
    weight, quantisation = layer_weight("h.0.mlp.up", layer)
    assert torch.equal(weight, layer.weight) and quantisation is None
    layer.weight = nn.Parameter(torch.ones(ROWS * COLUMNS // 8, 1))
    with pytest.raises(TypeError, match="FalconLinear"):
        layer_weight("h.0.mlp.up", layer)

    class Own(nn.Linear):
        pass

    with pytest.raises(TypeError, match="Own"):
        layer_weight("h.0.mlp.up", Own(COLUMNS, ROWS))
