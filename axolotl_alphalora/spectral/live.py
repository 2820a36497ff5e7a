"""Weights of a model in memory, one at a time: dequantised where need be, and never codes.

And those of checkpoints that only transformers can read: quantised ones and GGUF files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from torch import Tensor, nn

from .. import __version__
from ..hosts.constants import QUANTISATION_PACKAGES
from .cache import Cache, file_digest, tensor_digest, text_digest
from .layers import layer_weight
from .model_files import UnreadableCheckpoint


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

    See `layer_weight` for the classes that can be
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
            `source`: `"live"`; `dtype`: their dtype after dequantisation, several joined by
            `+`, None before the first read; `revision`: None; `quantization`: such as
            `"bnb 4-bit"`, several joined by `+`, None for plain weights.
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
        """Return `weight of live module '<name>'`."""
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


_PACKAGES = {**QUANTISATION_PACKAGES, "gguf": "gguf"}


class LoadedWeights:
    """The weights of a model that transformers loads, when the first one is asked for.

    Args:
        name: The model, for messages.
        kind: What the plan calls the source, such as `"gguf"`.
        load: Loads the model.
        files: The files it is loaded from. Their content identifies its weights, so that weights
            known before need no loading.
        cache: Keeps the files' digests and what is known of the weights' dtypes.
        revision: The commit that the files come from.
        left_out: What of the files no module takes, see
            `WeightNames.left_out`.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        load: Callable[[], nn.Module],
        files: list[Path],
        cache: Cache,
        revision: str | None = None,
        left_out: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._left_out = dict(left_out or {})
        self._name = name
        self._kind = kind
        self._load = load
        self._cache = cache
        self._revision = revision
        self._live: LiveWeights | None = None
        self._lock = Lock()
        self._files = "\n".join([*_versions(), *sorted(file_digest(path, cache) for path in files)])
        self._known: dict[str, str | None] | None = cache.get("loaded", self._files)

    @property
    def description(self) -> dict[str, Any]:
        """What a plan records.

        Returns:
            `source`: the kind; `dtype` and `quantization`: of the weights as loaded, now and
            before; `revision`: the commit of a repository, None for a file or directory. Where
            there are any, also the lists of what no module took.
        """
        live = self._live.description if self._live is not None else {}
        return {
            "source": self._kind,
            "dtype": self._all("dtype", live),
            "revision": self._revision,
            "quantization": self._all("quantization", live),
            **self._left_out,
        }

    def fingerprint(self, module_name: str) -> str | None:
        """Return a digest of the files and the module's name, None if they were never loaded."""
        return self._identity(module_name) if self._known is not None else None

    def tensor(self, module_name: str) -> Tensor:
        """Return the weight of a module, dequantised where it is quantised.

        Raises:
            UnreadableCheckpoint: If transformers cannot load the model.
            TypeError: If the module's class cannot be read.
        """
        return self._loaded().tensor(module_name)

    def identify(self, module_name: str, weight: Tensor) -> str:
        """Return a digest of the files and the module's name."""
        return self._identity(module_name)

    def location(self, module_name: str) -> str:
        """Return `weight of module '<name>' of <model>`."""
        return f"weight of module {module_name!r} of {self._name}"

    def close(self) -> None:
        """Let go of the model."""
        if self._live is not None:
            self._known = self.description
            self._cache.put("loaded", self._files, self._known)
            self._live = None

    def _identity(self, module_name: str) -> str:
        return text_digest(f"{module_name}\n{self._files}")

    def _all(self, field: str, live: dict[str, str | None]) -> str | None:
        known = (self._known or {}).get(field)
        parts = {part for text in (known, live.get(field)) if text for part in text.split("+")}
        return "+".join(sorted(parts)) or None

    def _loaded(self) -> LiveWeights:
        with self._lock:
            if self._live is None:
                try:
                    self._live = LiveWeights(self._load())
                except (ImportError, OSError, RuntimeError, ValueError) as error:
                    package = _PACKAGES.get(self._kind)
                    missing = package is not None and find_spec(package) is None
                    raise UnreadableCheckpoint(
                        f"transformers cannot load {self._name} ({self._kind}): {error}"
                        + (f". It needs {package}: pip install {package}" if missing else "")
                    ) from error
            return self._live


def _versions() -> list[str]:
    """Return the versions of all that has a part in what a dequantised weight is."""
    found = [f"axolotl-alphalora {__version__}"]
    for package in ("peft", "transformers", *_PACKAGES.values()):
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return sorted(set(found))
