"""Mend what PEFT, accelerate and TRL do to tensors that stand in a `ParameterDict`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..hosts.accelerate import keep_loaded
from ..hosts.constants import TRL_TRAINED


@contextmanager
def kept_frozen(layers: Iterable[Any], adapter_name: str) -> Iterator[None]:
    """Leave an adapter's frozen tensors frozen where PEFT puts new ones in their place.

    What is put into a `ParameterDict` becomes a new parameter, which is always trainable.

    Args:
        layers: AlphaLoRA layers.
        adapter_name: Name of the adapter.
    """
    frozen = [
        part
        for layer in layers
        for part in (getattr(layer, name) for name in layer.adapter_layer_names)
        if adapter_name in part and not part[adapter_name].requires_grad
    ]
    yield
    for part in frozen:
        part[adapter_name].requires_grad_(False)


def keep_experts_loaded(layers: Iterable[Any]) -> None:
    """Keep the adapters' tensors on the device, where accelerate offloads the base.

    Args:
        layers: AlphaLoRA layers.

    Raises:
        ValueError: If a layer is offloaded to disk, where PEFT stores only LoRA weights; names it.
    """
    for layer in layers:
        try:
            for name in layer.adapter_layer_names:
                keep_loaded(getattr(layer, name))
        except KeyError as error:
            raise ValueError(
                f"{layer.module_name} is offloaded to disk, and its experts with it: PEFT can do "
                "that with a LoRA alone. Keep it in memory: name its block in `device_map` (a "
                "device or 'cpu'), or give `max_memory` more of 'cpu'."
            ) from error


def copy_trained(layers: Iterable[Any], adapter_name: str) -> None:
    """Give TRL's reference adapter the values of the trained one.

    TRL copies the tensors with `.default.` in their names; a LoRA's have it, ours end with it.

    Args:
        layers: AlphaLoRA layers with the reference adapter.
        adapter_name: Its name.
    """
    for layer in layers:
        for name in layer.adapter_layer_names:
            tensor, source = layer.part(name, adapter_name), layer.part(name, TRL_TRAINED)
            if tensor is not None and source is not None:
                tensor.data.copy_(source.data)
