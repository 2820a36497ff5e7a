"""A loaded model's weights go by their modules' names, under whatever PEFT has put around them."""

import pytest
import torch
from torch import nn

from axolotl_alphalora.spectral import LiveWeights
from axolotl_alphalora.spectral.cache import tensor_digest


class Block(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.q = layer


def model_of(*layers):
    return nn.ModuleDict({"layers": nn.ModuleList(Block(layer) for layer in layers)})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_plain_weight_is_read_as_it_is(dtype):
    layer = nn.Linear(4, 6).to(dtype)
    weights = LiveWeights(model_of(layer))
    tensor = weights.tensor("layers.0.q")
    assert torch.equal(tensor, layer.weight)
    assert not tensor.requires_grad
    assert weights.description == {
        "source": "live",
        "dtype": str(dtype).removeprefix("torch."),
        "revision": None,
        "quantization": None,
    }


def test_the_description_speaks_of_what_has_been_read():
    weights = LiveWeights(model_of(nn.Linear(4, 4), nn.Linear(4, 4).half()))
    assert weights.description["dtype"] is None
    weights.tensor("layers.0.q")
    assert weights.description["dtype"] == "float32"
    weights.tensor("layers.1.q")
    assert weights.description["dtype"] == "float16+float32"


@pytest.mark.parametrize("method", ["lora", "alphalora", "twice"])
def test_a_layer_that_peft_wrapped_is_unwrapped(method):
    from peft import LoraConfig, inject_adapter_in_model

    layer = nn.Linear(8, 8)
    model = model_of(layer)
    if method == "alphalora":
        from axolotl_alphalora.adapter import AlphaLoraConfig

        config = AlphaLoraConfig(target_modules=["layers.0.q"], r=2)
    else:
        config = LoraConfig(target_modules=["q"], r=2)
    inject_adapter_in_model(config, model)
    if method == "twice":
        inject_adapter_in_model(LoraConfig(target_modules=["q"], r=4), model, "second")
    assert type(model["layers"][0].q) is not nn.Linear
    tensor = LiveWeights(model).tensor("layers.0.q")
    assert tensor.data_ptr() == layer.weight.data_ptr()


def test_a_weight_is_identified_by_its_present_value():
    layer = nn.Linear(4, 4)
    weights = LiveWeights(model_of(layer))
    assert weights.fingerprint("layers.0.q") is None
    before = weights.identify("layers.0.q", weights.tensor("layers.0.q"))
    assert before == tensor_digest(layer.weight)
    with torch.no_grad():
        layer.weight += 1
    assert weights.fingerprint("layers.0.q") is None
    assert weights.identify("layers.0.q", weights.tensor("layers.0.q")) != before


def test_a_missing_module_is_named():
    with pytest.raises(ValueError, match=r"no module 'layers\.7\.q'"):
        LiveWeights(model_of(nn.Linear(4, 4))).tensor("layers.7.q")


def test_the_location_names_the_module():
    weights = LiveWeights(model_of(nn.Linear(4, 4)))
    assert weights.location("layers.0.q") == "weight of live module 'layers.0.q'"
