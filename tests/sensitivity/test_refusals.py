import pytest
import torch
from torch import nn

from axolotl_alphalora.sensitivity import measure_sensitivity


def _chain(layers, x):
    return layers[1](layers[0](x))


def test_unknown_modules_and_missing_samples_are_refused(toy, sequence):
    with pytest.raises(ValueError, match="no module named 'layers.7'"):
        measure_sensitivity(toy(_chain), ["layers.0", "layers.7"], [sequence(6)])
    with pytest.raises(ValueError, match="no samples"):
        measure_sensitivity(toy(_chain), ["layers.0"], [])


def test_a_module_called_twice_is_refused(toy, sequence):
    model = toy(lambda layers, x: layers[0](layers[0](x)))
    with pytest.raises(NotImplementedError, match="layers.0 is called 2 times for one sample"):
        measure_sensitivity(model, ["layers.0"], [sequence(6)])


def test_a_weight_in_two_modules_is_refused(toy, sequence):
    model = toy(_chain)
    model.layers[1].weight = model.layers[0].weight
    with pytest.raises(NotImplementedError, match="layers.1 shares its weight"):
        measure_sensitivity(model, ["layers.1"], [sequence(6)])


def test_a_module_that_runs_without_gradients_is_refused(toy, sequence):
    def body(layers, x):
        with torch.no_grad():
            frozen = layers[0](x)
        return layers[1](x + frozen)

    with pytest.raises(NotImplementedError, match="layers.0 runs where .* gradients off"):
        measure_sensitivity(toy(body), ["layers.0", "layers.1"], [sequence(6)])


def test_a_kernel_without_a_gradient_is_refused(toy, sequence):
    """Silently, everything before it would have no gradient."""

    class Inference(nn.Linear):
        def forward(self, x):
            return super().forward(x).detach()

    model = toy(_chain)
    model.layers[1] = Inference(8, 8)
    with pytest.raises(ValueError, match=r"layers.1 \(Inference\) passes no gradient"):
        measure_sensitivity(model, ["layers.0", "layers.1"], [sequence(6)])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.LayerNorm(8), r"layers.0 \(LayerNorm\) is not a linear layer"),
        (nn.Embedding(48, 8), r"layers.0 \(Embedding\) is not called like a linear layer"),
    ],
)
def test_what_is_not_linear_is_refused(toy, sequence, layer, message):
    def body(layers, x):
        return layers[0](torch.arange(x.shape[1])[None] if layers[0].weight.ndim == 2 else x)

    model = toy(body)
    model.layers[0] = layer
    with pytest.raises(ValueError, match=message):
        measure_sensitivity(model, ["layers.0"], [sequence(6)])


def test_a_loss_that_is_not_finite_names_its_sample(toy, sequence):
    model = toy(lambda layers, x: layers[0](x) / (x.shape[1] != 7))
    samples = [sequence(6), sequence(7, task="sums")]
    with pytest.raises(ValueError, match=r"loss of sample 2 of 2 \(task 'sums'\) is nan"):
        measure_sensitivity(model, ["layers.0"], samples)


@pytest.mark.parametrize("autocast", [None, torch.float16])
def test_a_gradient_that_is_not_finite_names_module_and_sample(toy, sequence, autocast):
    model = toy(lambda layers, x: x + layers[0](layers[1](x).relu() * 0).abs().sqrt() * 0)
    nn.init.zeros_(model.layers[0].bias)
    with pytest.raises(ValueError, match=r"gradient of layers.0 is not finite on sample 1 of 1"):
        measure_sensitivity(model, ["layers.0"], [sequence(6)], autocast=autocast)


def test_a_model_that_cannot_be_checkpointed_is_refused(toy, sequence):
    with pytest.raises(ValueError, match="Toy has no layers with gradient checkpointing"):
        measure_sensitivity(toy(_chain), ["layers.0"], [sequence(6)], checkpointing=True)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_module_without_gradients_in_a_checkpoint_is_refused(tiny, sequence, reentrant):
    """The first pass of reentrant checkpointing has no gradients for anything."""
    model = tiny("llama")
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    layer = model.model.layers[1].mlp
    layer.forward = torch.no_grad()(layer.forward)
    names = ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]
    with pytest.raises(NotImplementedError, match=f"{names[1]} runs where .* gradients off"):
        measure_sensitivity(model, names, [sequence(6)])


def test_an_error_within_the_models_positions_is_not_put_down_to_them(tiny, linears, sequence):
    model, sample = tiny("gpt2"), sequence(64)
    sample.inputs["input_ids"][0, 3] = 48
    with pytest.raises(ValueError, match="has 48 embeddings, and sample 1 .* has the token 48"):
        measure_sensitivity(model, linears(model), [sample])

    def fail(*_):
        raise IndexError("another one")

    sample.inputs["input_ids"][0, 3] = 1
    model.register_forward_pre_hook(fail)
    with pytest.raises(IndexError, match="another one"):
        measure_sensitivity(model, linears(model), [sample])


def test_running_out_of_memory_is_not_put_down_to_the_positions(tiny, linears, sequence):
    model = tiny("gpt2")

    def exhaust(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(exhaust)
    with pytest.raises(torch.OutOfMemoryError):
        measure_sensitivity(model, linears(model), [sequence(70)])
