"""Where weights to be analysed come from: one tensor at a time, never quantised codes."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

__all__ = ["LiveWeights", "WeightSource"]

_PLAIN = {"torch.nn.modules.linear.Linear", "transformers.pytorch_utils.Conv1D"}
_BITSANDBYTES = {
    "bitsandbytes.nn.modules.Linear4bit": "bnb 4-bit",
    "bitsandbytes.nn.modules.Linear8bitLt": "bnb 8-bit",
}


class WeightSource(Protocol):
    """A source of weight matrices, addressed by the name of the module that owns them."""

    @property
    def description(self) -> dict[str, str | None]:
        """What a plan records about the source: plain JSON values."""

    def tensor(self, module_name: str) -> Tensor:
        """Return a module's weight in a floating dtype, as it is stored."""

    def location(self, module_name: str) -> str:
        """Return where a module's weight lies, for messages."""


class LiveWeights:
    """The weights of a loaded model.

    Layers of ``torch.nn.Linear`` and of transformers' ``Conv1D`` are read as they are; those of
    bitsandbytes' ``Linear4bit`` and ``Linear8bitLt`` are dequantised, one at a time. Layers that
    PEFT has wrapped are unwrapped. Anything else is refused, because the stored tensor of an
    unknown class may be codes and not weights.

    Args:
        model: The model. Read it before its first forward: on some CPUs bitsandbytes repacks
            4-bit weights in their place when they are first used.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        self._dtypes: set[str] = set()
        self._quantizations: set[str] = set()

    @property
    def description(self) -> dict[str, str | None]:
        """The tensors read so far.

        Returns:
            ``source``: ``"live"``; ``dtype``: their dtype after dequantisation, several joined by
            ``+``, None before the first read; ``quantization``: ``"bnb 4-bit"``, ``"bnb 8-bit"``,
            both joined by ``+``, or None.
        """
        return {
            "source": "live",
            "dtype": "+".join(sorted(self._dtypes)) or None,
            "quantization": "+".join(sorted(self._quantizations)) or None,
        }

    def tensor(self, module_name: str) -> Tensor:
        """Return the weight of a module, dequantised where it is quantised.

        Args:
            module_name: Name of the module within the model.

        Returns:
            The weight, detached, on the module's device, in the layout in which it is stored.

        Raises:
            TypeError: If the module's class, or its weight's, is not one of those listed above.
            ValueError: If the model has no such module, or the module's weight holds no data or
                has been repacked by a forward pass.
        """
        module = self._module(module_name)
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        if kind in _PLAIN:
            weight = _plain_weight(module_name, module)
        elif kind in _BITSANDBYTES:
            weight = _dequantized(module_name, module)
            self._quantizations.add(_BITSANDBYTES[kind])
        else:
            raise TypeError(
                f"cannot read the weight of module {module_name!r}: its class is {kind}, and only "
                f"{', '.join(sorted(_PLAIN | _BITSANDBYTES.keys()))} are supported. "
                "Analyse the full-precision checkpoint instead."
            )
        self._dtypes.add(str(weight.dtype).removeprefix("torch."))
        return weight

    def location(self, module_name: str) -> str:
        """Return ``weight of live module '<name>'``."""
        return f"weight of live module {module_name!r}"

    def _module(self, module_name: str) -> nn.Module:
        if module_name not in self._modules:
            raise ValueError(f"the model has no module {module_name!r}")
        module = self._modules[module_name]
        while isinstance(base := getattr(module, "base_layer", None), nn.Module):
            module = base
        return module


def _plain_weight(module_name: str, module: nn.Module) -> Tensor:
    weight = module.weight
    if type(weight) is not nn.Parameter or not weight.is_floating_point() or weight.itemsize < 2:
        raise TypeError(
            f"cannot read the weight of module {module_name!r}: it is a {type(weight).__name__} "
            f"of {weight.dtype}, not a plain floating-point parameter"
        )
    _require_data(module_name, weight)
    return weight.detach()


def _dequantized(module_name: str, module: nn.Module) -> Tensor:
    weight: Any = module.weight
    _require_data(module_name, weight)
    if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
        raise ValueError(
            f"the 4-bit weight of module {module_name!r} has been repacked by a forward pass on "
            "this CPU: read the weights before the model's first forward"
        )
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(module).detach()


def _require_data(module_name: str, weight: Tensor) -> None:
    if weight.is_meta:
        raise ValueError(
            f"the weight of module {module_name!r} is on the meta device and holds no data: "
            "load the model without offloading it"
        )
