"""A measurement leaves no trace."""

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from axolotl_alphalora.sensitivity import measure_sensitivity


def _state(model):
    """Everything that a measurement could change, in values that compare with ==."""
    return {
        "tensors": {
            key: (value.dtype, value.numpy(force=True).tobytes())
            for key, value in (*model.named_parameters(), *model.named_buffers())
        },
        "identities": {key: id(value) for key, value in model.named_parameters()},
        "flags": {key: value.requires_grad for key, value in model.named_parameters()},
        "gradients": {
            key: None if value.grad is None else (id(value.grad), value.grad.tolist())
            for key, value in model.named_parameters()
        },
        "modules": {
            key: {
                name: list(value) if isinstance(value, dict) else id(value)
                for name, value in vars(module).items()
            }
            for key, module in model.named_modules()
        },
        "random": (
            random.getstate(),
            np.random.get_state()[1].tolist(),
            np.random.get_state()[2:],
            torch.get_rng_state().tolist(),
        ),
    }


def _disturb(model):
    """Modes, flags, gradients and a hook as no single call would set them."""
    for index, (module, parameter) in enumerate(
        zip(model.modules(), model.parameters(), strict=False)
    ):
        module.training = index % 3 == 0
        parameter.requires_grad_(index % 2 == 0)
        if index % 4 == 0:
            parameter.grad = torch.full_like(parameter, 0.5)
    model.model.layers[1].register_forward_hook(lambda *_: None)


class _Stop(Exception):
    pass


@pytest.mark.parametrize("checkpointing", ["off", "reentrant", "not reentrant", "for the measure"])
@pytest.mark.parametrize("stop", [None, "between samples", "in a forward", "in a backward"])
def test_a_model_is_left_as_it_was(tiny, linears, sequence, checkpointing, stop):
    model = tiny("llama")
    if checkpointing in ("reentrant", "not reentrant"):
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
    _disturb(model)
    samples = [sequence(9), sequence(12)]
    layer = model.model.layers[1].mlp.down_proj
    if stop == "in a forward":

        def fail(module, args):
            if args[0].shape[1] == 12:
                raise _Stop

        layer.register_forward_pre_hook(fail)
    if stop == "in a backward":

        def fail_later(module, args, output):
            if output.requires_grad and output.shape[1] == 12:
                output.register_hook(_raise)

        layer.register_forward_hook(fail_later)
    arguments = {"checkpointing": checkpointing == "for the measure"}
    if stop == "between samples":
        arguments["progress"] = _raise
    before = _state(model)
    if stop is None:
        measure_sensitivity(model, linears(model), samples, **arguments)
    else:
        with pytest.raises(_Stop):
            measure_sensitivity(model, linears(model), samples, **arguments)
    assert _state(model) == before


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_sample_longer_than_the_positions_is_refused_and_leaves_the_model(
    tiny, linears, sequence, checkpointing
):
    model = tiny("gpt2")
    samples = [sequence(64), sequence(70, task="long")]
    before = _state(model)
    message = r"sample 2 of 2 \(task 'long'\), which has 70 tokens: .* 64 .*`sequence_len` to 64"
    with pytest.raises(ValueError, match=message) as caught:
        measure_sensitivity(model, linears(model), samples, checkpointing=checkpointing)
    assert isinstance(caught.value.__cause__, IndexError)
    assert _state(model) == before


@pytest.mark.parametrize("action", ["always", "error"])
def test_a_model_with_a_layer_that_is_never_called_is_left_as_it_was(toy, sequence, action):
    """The warning comes when the model is back, so that it may be made an error."""
    model = toy(lambda layers, x: layers[0](x))
    before = _state(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        try:
            measure_sensitivity(model, ["layers.0", "layers.1"], [sequence(6)])
        except UserWarning as error:
            message = str(error)
        else:
            message = str(caught[0].message)
    assert "1 of the 2 target modules (layers.1)" in message
    assert _state(model) == before


def _raise(*_):
    raise _Stop


def test_random_states_and_attributes_survive_a_model_that_changes_them(toy, sequence):
    model = toy(
        lambda layers, x: layers[0](x * torch.rand(()) + random.random() + np.random.rand())
    )
    model.register_buffer("seen", torch.zeros(2))

    def rebind(module, args):
        module.seen = torch.ones(3)
        module.cache = torch.ones(3)

    model.register_forward_pre_hook(rebind)
    before = _state(model)
    first = measure_sensitivity(model, ["layers.0"], [sequence(6)])
    assert _state(model) == before
    assert measure_sensitivity(model, ["layers.0"], [sequence(6)]) == first


def test_while_it_measures_no_weight_needs_a_gradient_and_nothing_drops_out(tiny, sequence):
    model = tiny("gpt2")
    model.gradient_checkpointing_enable()
    seen = []

    def look(module, args):
        seen.append(any(parameter.requires_grad for parameter in model.parameters()))
        seen.append(any(m.training for m in model.modules() if isinstance(m, nn.Dropout)))
        seen.append(model.transformer.h[0].training)

    model.transformer.h[0].mlp.c_fc.register_forward_pre_hook(look)
    measure_sensitivity(model, ["transformer.h.1.mlp.c_fc"], [sequence(9)])
    assert len(seen) == 6
    assert not any(seen)
