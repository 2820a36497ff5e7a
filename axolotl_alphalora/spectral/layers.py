"""The weight of one linear layer in memory: dequantised where need be, and never codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_IDENTITY_ROWS = 1024


def layer_weight(name: str, module: nn.Module) -> tuple[Tensor, str | None]:
    """Return a linear layer's weight in a floating dtype.

    `torch.nn.Linear`, those of its subclasses that transformers' models have, and transformers'
    `Conv1D` are read as they are, bitsandbytes' 4-bit and
    8-bit layers, HQQ's, and torchao's weights by their packages' own dequantisation. GPTQ and AWQ
    layers of gptqmodel are applied to the identity, which gives their weight whatever the layout
    of its codes.

    Args:
        name: The module's name, for messages.
        module: The layer, without an adapter around it.

    Returns:
        The weight, detached, on the module's device, and the name of its quantisation, None for a
        plain one.

    Raises:
        TypeError: If the class of the module or of its weight is none of those above: what an
            unknown class stores may be codes.
        ValueError: If the weight holds no data, or a forward pass has repacked it.
    """
    for kind in type(module).__mro__:
        reader = _READERS.get(f"{kind.__module__}.{kind.__qualname__}")
        # A subclass may store its weight in its own way; of gptqmodel's, all can be applied, and
        # those of transformers' models (Falcon's) compute otherwise and store the same.
        known = kind is type(module) or reader is _applied or _of_a_model(module)
        if reader is not None and known:
            return reader(name, module)
    found = f"{type(module).__module__}.{type(module).__qualname__}"
    raise TypeError(
        f"cannot read the weight of module {name!r}: its class is {found}, and only "
        f"{', '.join(sorted(_READERS))} are supported. Analyse the full-precision checkpoint "
        "instead."
    )


def _of_a_model(module: nn.Module) -> bool:
    """Whether a class comes with a model of transformers and its weight is that of a `Linear`."""
    if not type(module).__module__.startswith("transformers.models."):
        return False
    sizes = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return isinstance(module, nn.Linear) and tuple(module.weight.shape) == sizes


def _plain(name: str, module: nn.Module) -> tuple[Tensor, str | None]:
    weight: Any = module.weight
    if type(weight).__module__.startswith("torchao."):
        _require_data(name, weight)
        return weight.dequantize().detach(), f"torchao {type(weight).__name__}"
    if type(weight) is not nn.Parameter or not weight.is_floating_point() or weight.itemsize < 2:
        raise TypeError(
            f"cannot read the weight of module {name!r}: it is a {type(weight).__name__} of "
            f"{weight.dtype}, not a plain floating-point parameter"
        )
    _require_data(name, weight)
    return weight.detach(), None


def _bnb_4bit(name: str, module: nn.Module) -> tuple[Tensor, str | None]:
    weight: Any = module.weight
    if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
        raise ValueError(
            f"the 4-bit weight of module {name!r} has been repacked by a forward pass on this "
            "CPU: read the weights before the model's first forward"
        )
    return _by_peft(name, module), "bnb 4-bit"


def _applied(name: str, module: Any) -> tuple[Tensor, str | None]:
    like = next((buffer for buffer in module.buffers() if buffer.is_floating_point()), None)
    if like is None:
        raise ValueError(f"module {name!r} holds no scales: load the model before analysing it")
    _require_data(name, like)
    columns = []
    with torch.no_grad(), _without_bias(module):
        for start in range(0, module.in_features, _IDENTITY_ROWS):
            rows = min(_IDENTITY_ROWS, module.in_features - start)
            inputs = torch.zeros(rows, module.in_features, dtype=like.dtype, device=like.device)
            inputs[:, start : start + rows].fill_diagonal_(1)
            columns.append(module(inputs))
    kinds = {kind.__name__ for kind in type(module).__mro__}
    return torch.cat(columns).T.contiguous(), "awq" if "AWQuantLinear" in kinds else "gptq"


@contextmanager
def _without_bias(module: Any) -> Iterator[None]:
    """Set the bias to zero: subtracted from half-precision outputs it takes digits with it."""
    if module.bias is None:
        yield
        return
    kept = module.bias.clone()
    with torch.inference_mode():  # else a bias made in that mode could not be written
        module.bias.zero_()
    try:
        yield
    finally:
        with torch.inference_mode():
            module.bias.copy_(kept)  # the layer may have replaced the tensor meanwhile


def _by_peft(name: str, module: nn.Module) -> Tensor:
    from ..hosts.peft import dequantize_module_weight

    _require_data(name, module.weight)
    return dequantize_module_weight(module).detach()


def _require_data(name: str, weight: Any) -> None:
    if weight.is_meta:
        raise ValueError(
            f"the weight of module {name!r} is on the meta device and holds no data: load the "
            "model without offloading it"
        )
    if weight.numel() == 0:
        raise ValueError(
            f"the weight of module {name!r} is empty here (DeepSpeed ZeRO-3 keeps it in parts): "
            "make the plan before, with `alphalora plan … --output plan.json`"
        )


_READERS: dict[str, Callable[[str, Any], tuple[Tensor, str | None]]] = {
    "torch.nn.modules.linear.Linear": _plain,
    "transformers.pytorch_utils.Conv1D": _plain,
    "bitsandbytes.nn.modules.Linear4bit": _bnb_4bit,
    "bitsandbytes.nn.modules.Linear8bitLt": lambda name, it: (_by_peft(name, it), "bnb 8-bit"),
    "hqq.core.quantize.HQQLinear": lambda name, it: (it.dequantize().detach(), "hqq"),
    "gptqmodel.nn_modules.qlinear.BaseQuantLinear": _applied,
}
