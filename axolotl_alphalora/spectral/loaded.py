"""Weights of checkpoints that only transformers can read: quantised ones and GGUF files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

from torch import Tensor, nn

from .. import __version__
from ..hosts.constants import QUANTISATION_PACKAGES
from .cache import Cache, file_digest
from .digest import text_digest
from .files import UnreadableCheckpoint
from .weights import LiveWeights

_PACKAGES = {**QUANTISATION_PACKAGES, "gguf": "gguf"}


class LoadedWeights:
    """The weights of a model that transformers loads, when the first one is asked for.

    Args:
        name: The model, for messages.
        kind: What the plan calls the source, such as ``"gguf"``.
        load: Loads the model.
        files: The files it is loaded from. Their content identifies its weights, so that weights
            known before need no loading.
        cache: Keeps the files' digests and what is known of the weights' dtypes.
        revision: The commit that the files come from.
        left_out: What of the files no module takes, see
            :meth:`~axolotl_alphalora.spectral.definition.WeightNames.left_out`.
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
            ``source``: the kind; ``dtype`` and ``quantization``: of the weights as loaded, now and
            before; ``revision``: the commit of a repository, None for a file or directory. Where
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
        """Return ``weight of module '<name>' of <model>``."""
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
