"""Weights of a loaded model: plain as they are, bitsandbytes dequantised, the rest refused."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from axolotl_alphalora.spectral import LiveWeights, fit_power_law, spectrum


class Block(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.q = layer


def live(layer):
    return LiveWeights(nn.ModuleDict({"layers": nn.ModuleList([Block(layer)])}))


def heavy_tailed_weight(rows=128, columns=64):
    """A matrix with a power-law spectrum: random weights alone have none worth the name."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, columns, generator=generator) for n in (rows, columns))
    scales = torch.arange(1, columns + 1) ** -0.7
    return torch.linalg.qr(left).Q @ (scales[:, None] * torch.linalg.qr(right).Q.T)


@pytest.fixture
def linear():
    layer = nn.Linear(64, 128, bias=False)
    layer.weight.data = heavy_tailed_weight()
    return layer


def four_bit(linear):
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(
        64, 128, bias=False, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=True
    )
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu")


def eight_bit(linear):
    import bitsandbytes as bnb

    layer = bnb.nn.Linear8bitLt(64, 128, bias=False, has_fp16_weights=False)
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu")


QUANTISED = {"bnb 4-bit": four_bit, "bnb 8-bit": eight_bit}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_weight_is_read_as_it_is(linear, dtype):
    layer = linear.to(dtype)
    weights = live(layer)
    tensor = weights.tensor("layers.0.q")
    assert torch.equal(tensor, layer.weight)
    assert not tensor.requires_grad
    assert weights.description == {
        "source": "live",
        "dtype": str(dtype).removeprefix("torch."),
        "quantization": None,
    }


def test_a_conv1d_is_read_in_its_own_layout():
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(96, 32)
    assert live(layer).tensor("layers.0.q").shape == (32, 96)


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_quantised_weight_is_dequantised(linear, kind):
    layer = QUANTISED[kind](linear)
    weights = live(layer)
    tensor = weights.tensor("layers.0.q")
    assert tensor.shape == (128, 64)
    assert tensor.is_floating_point()
    # What the layer itself computes from an identity is its dequantised weight.
    expected = layer(torch.eye(64)).T
    torch.testing.assert_close(tensor.float(), expected.float(), rtol=0.02, atol=2e-3)
    assert weights.description["quantization"] == kind


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantisation_hardly_changes_the_alpha(linear, kind):
    tensor = live(QUANTISED[kind](linear)).tensor("layers.0.q")
    alpha = fit_power_law(spectrum(tensor), "hill").alpha
    expected = fit_power_law(spectrum(linear.weight), "hill").alpha
    assert alpha == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("kind", QUANTISED)
def test_reading_leaves_the_layer_as_it_was(linear, kind):
    layer, untouched = QUANTISED[kind](linear), QUANTISED[kind](linear)
    live(layer).tensor("layers.0.q")
    x = torch.randn(4, 64)
    assert torch.equal(layer(x), untouched(x))


def test_a_repacked_4_bit_weight_is_refused(linear):
    layer = four_bit(linear)
    layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match=r"'layers\.0\.q' has been repacked"):
        live(layer).tensor("layers.0.q")


def test_a_layer_that_peft_wrapped_is_unwrapped(linear):
    from peft import LoraConfig, inject_adapter_in_model

    model = nn.ModuleDict({"layers": nn.ModuleList([Block(linear)])})
    inject_adapter_in_model(LoraConfig(target_modules=["q"], r=2), model)
    assert type(model["layers"][0].q) is not nn.Linear
    assert torch.equal(LiveWeights(model).tensor("layers.0.q"), heavy_tailed_weight())


class SubclassedLinear(nn.Linear):
    pass


def test_an_unknown_class_is_refused_by_name():
    weights = live(SubclassedLinear(4, 4))
    with pytest.raises(TypeError, match=r"'layers\.0\.q'.*SubclassedLinear"):
        weights.tensor("layers.0.q")
    assert weights.description["dtype"] is None


class WrappedTensor(torch.Tensor):
    pass


def test_a_plain_layer_with_foreign_weights_is_refused():
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.ones(4, 4).as_subclass(WrappedTensor))
    with pytest.raises(TypeError, match=r"'layers\.0\.q': it is a WrappedTensor"):
        live(layer).tensor("layers.0.q")
    layer.weight = nn.Parameter(torch.ones(4, 4).to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(TypeError, match="float8_e4m3fn, not a plain"):
        live(layer).tensor("layers.0.q")


def test_a_weight_without_data_is_refused():
    with pytest.raises(ValueError, match="meta device"):
        live(nn.Linear(4, 4, device="meta")).tensor("layers.0.q")


def test_a_missing_module_is_named():
    with pytest.raises(ValueError, match=r"no module 'layers\.7\.q'"):
        live(nn.Linear(4, 4)).tensor("layers.7.q")


def test_importing_the_package_loads_no_large_library():
    code = (
        "import sys, axolotl_alphalora.spectral, axolotl_alphalora.allocation;"
        "print({'transformers', 'peft', 'bitsandbytes', 'axolotl'} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr


def test_importing_the_allocation_loads_no_torch():
    code = "import sys, axolotl_alphalora.allocation; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr
