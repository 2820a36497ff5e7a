"""Where weights to be analysed come from: one tensor at a time, never quantised codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from .dequantize import layer_weight
from .digest import tensor_digest

__all__ = ["LiveWeights", "WeightSource"]


class WeightSource(Protocol):
    """A source of weight matrices, addressed by the name of the module that owns them."""

    @property
    def description(self) -> Mapping[str, Any]:
        """What a plan records about the weights read so far: plain JSON values."""

    def fingerprint(self, module_name: str) -> str | None:
        """Return what identifies a module's weight, None if only reading it can tell."""

    def tensor(self, module_name: str) -> Tensor:
        """Return a module's weight in a floating dtype, as it is stored."""

    def identify(self, module_name: str, weight: Tensor) -> str:
        """Return what identifies a module's weight, given the weight."""

    def location(self, module_name: str) -> str:
        """Return where a module's weight lies, for messages."""

    def close(self) -> None:
        """Let go of what reading needed, and keep what may serve the next time."""


class LiveWeights:
    """The weights of a loaded model, dequantised one at a time where they are quantised.

    See :func:`~axolotl_alphalora.spectral.dequantize.layer_weight` for the classes that can be
    read. Layers that PEFT has wrapped are unwrapped.

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
            ``+``, None before the first read; ``revision``: None; ``quantization``: such as
            ``"bnb 4-bit"``, several joined by ``+``, None for plain weights.
        """
        return {
            "source": "live",
            "dtype": "+".join(sorted(self._dtypes)) or None,
            "revision": None,
            "quantization": "+".join(sorted(self._quantizations)) or None,
        }

    def fingerprint(self, module_name: str) -> str | None:
        """Return None: a weight in memory may have changed."""
        return None

    def tensor(self, module_name: str) -> Tensor:
        """Return the weight of a module, dequantised where it is quantised.

        Args:
            module_name: Name of the module within the model.

        Returns:
            The weight, detached, on the module's device, in the layout in which it is stored.

        Raises:
            TypeError: If its class cannot be read.
            ValueError: If the model has no such module, or the weight holds no data or has been
                repacked by a forward pass.
        """
        weight, quantization = layer_weight(module_name, self._module(module_name))
        self._dtypes.add(str(weight.dtype).removeprefix("torch."))
        if quantization is not None:
            self._quantizations.add(quantization)
        return weight

    def identify(self, module_name: str, weight: Tensor) -> str:
        """Return the digest of the weight."""
        return tensor_digest(weight)

    def location(self, module_name: str) -> str:
        """Return ``weight of live module '<name>'``."""
        return f"weight of live module {module_name!r}"

    def close(self) -> None:
        """Do nothing: the model is the caller's."""

    def _module(self, module_name: str) -> nn.Module:
        if module_name not in self._modules:
            raise ValueError(f"the model has no module {module_name!r}")
        module = self._modules[module_name]
        while isinstance(base := getattr(module, "base_layer", None), nn.Module):
            module = base
        return module
