"""Leaving a model as it was: what a measurement changes, and how it is put back."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Put everything back at the end, also after an error.

    Put back are the attributes of every module (so its mode, hooks, buffers and checkpointing),
    the data and `requires_grad` of every parameter, and the random states of torch, CUDA, Python
    and numpy. Tensors are remembered, not copied: writing into one of them is not undone.
    """
    modules = [(module, _attributes(module)) for module in model.modules()]
    parameters = [(p, p.data, p.requires_grad) for p in model.parameters()]
    randomness = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        for module, attributes in modules:
            _put_back(module, attributes)
        for parameter, data, requires_grad in parameters:
            parameter.data = data
            parameter.requires_grad_(requires_grad)
        random.setstate(randomness[0])
        np.random.set_state(randomness[1])
        torch.set_rng_state(randomness[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def checkpointed_layers(model: nn.Module) -> list[nn.Module]:
    """The modules whose gradient checkpointing is switched on."""
    return [module for module in model.modules() if getattr(module, "gradient_checkpointing", 0)]


def switch_checkpointing_on(model: nn.Module) -> None:
    """Checkpoint every layer that can be, without reentrance, unless some already are.

    Raises:
        ValueError: If the model has no layer that can be checkpointed.
    """
    from ..hosts.transformers import set_checkpointing

    if checkpointed_layers(model):
        return
    able: list[Any] = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]
    if not able:
        raise ValueError(
            f"{type(model).__name__} has no layers with gradient checkpointing. Measure it with "
            "`gradient_checkpointing` switched off."
        )
    for module in able:
        set_checkpointing(module, partial(checkpoint, use_reentrant=False))


def without_noise(model: nn.Module) -> None:
    """Let no dropout or noise run.

    Every module is put into eval mode except quantised linear layers. These stay in training mode,
    which has the kernels that a run uses; in eval mode bitsandbytes rewrites its 4-bit weights for
    some processors.
    """
    for module in model.modules():
        module.training = _is_special_linear(module)


def freeze(model: nn.Module) -> None:
    """Let no weight require a gradient, and no dropout or noise run.

    Checkpointed layers are in training mode until they run, because only then do they checkpoint:
    while one runs it is in eval mode as well.
    """
    from ..hosts.transformers import GradientCheckpointingLayer, wrap_checkpointing

    model.requires_grad_(False)
    without_noise(model)
    for layer in checkpointed_layers(model):
        if isinstance(layer, GradientCheckpointingLayer):
            layer.training = True
            wrap_checkpointing(layer, _checkpoint_in_eval, layer)
        elif not any(child is not layer for child in checkpointed_layers(layer)):
            # An older kind of model: the stack of layers asks for its own mode while it runs.
            layer.training = True


def _is_special_linear(module: nn.Module) -> bool:
    return (
        hasattr(module, "in_features")
        and type(module) is not nn.Linear
        and next(module.children(), None) is None
    )


def _checkpoint_in_eval(
    checkpoint: Callable[..., Any], layer: nn.Module, function: Callable[..., Any], *args: Any
) -> Any:
    def run(*args: Any) -> Any:
        layer.training = False
        try:
            return function(*args)
        finally:
            layer.training = True

    return checkpoint(run, *args)


def _attributes(module: nn.Module) -> dict[str, tuple[Any, dict[Any, Any] | None]]:
    return {
        key: (value, dict(value) if type(value) in (dict, OrderedDict) else None)
        for key, value in vars(module).items()
    }


def _put_back(module: nn.Module, before: dict[str, tuple[Any, dict[Any, Any] | None]]) -> None:
    now = vars(module)
    for key in now.keys() - before.keys():
        del now[key]
    for key, (value, content) in before.items():
        now[key] = value
        if content is not None:
            # Handles of hooks know these dicts themselves, so they are filled again, not replaced.
            value.clear()
            value.update(content)
