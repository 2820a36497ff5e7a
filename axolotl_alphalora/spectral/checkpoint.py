"""Full-precision weights read from a checkpoint's files, one tensor at a time."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .digest import combined_digest
from .files import CheckpointFiles, UnreadableCheckpoint
from .tensors import StoredTensors, read_json

if TYPE_CHECKING:
    from .definition import WeightNames

__all__ = ["FLOATS", "CheckpointWeights", "MissingTensor", "quantization_method"]

FLOATS = {"float64", "float32", "float16", "bfloat16"}
"""Dtypes in which weights are stored as they are."""


class MissingTensor(UnreadableCheckpoint):
    """The checkpoint holds no weight for a module."""


class CheckpointWeights:
    """The weights of a checkpoint's files, by the names of the modules that own them.

    Only headers are read at first; each weight is read when it is asked for and not kept.

    Args:
        stored: The files' tensors.
        keys: Module name to the keys of the stored tensors that its weight is made of.
        converted: Names of the modules whose weight is computed from what is stored.
        names: Returns the conversions; called only for a module in ``converted``.
        left_out: What of the files no module takes, see
            :meth:`~axolotl_alphalora.spectral.definition.WeightNames.left_out`.

    Raises:
        MissingTensor: If a module has no keys.
        UnreadableCheckpoint: If a tensor is none of float64, float32, float16 and bfloat16: then
            it is a code and no weight.
    """

    def __init__(
        self,
        stored: StoredTensors,
        keys: Mapping[str, Sequence[str]],
        converted: Sequence[str] = (),
        names: Callable[[], WeightNames] | None = None,
        left_out: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._left_out = dict(left_out or {})
        self._stored = stored
        self._keys = {module: tuple(found) for module, found in keys.items()}
        self._converted = frozenset(converted)
        self._names = names
        for module, found in self._keys.items():
            self._check(module, found)

    @property
    def description(self) -> dict[str, Any]:
        """What a plan records.

        Returns:
            ``source``: ``"safetensors"`` or ``"bin"``; ``dtype``: that of the weights, several
            joined by ``+``; ``revision``: the commit of a repository, None for a directory;
            ``quantization``: None. Where there are any, also the lists of what no module took.
        """
        infos = self._stored.infos
        dtypes = {infos[key].dtype for found in self._keys.values() for key in found}
        return {
            "source": self._stored.format,
            "dtype": "+".join(sorted(dtypes)) or None,
            "revision": self._stored.revision,
            "quantization": None,
            **self._left_out,
        }

    def fingerprint(self, module_name: str) -> str | None:
        """Return the digest of a module's weight if it is known without reading it."""
        digests = {key: self._stored.known_digest(key) for key in self._keys[module_name]}
        known = {key: digest for key, digest in digests.items() if digest is not None}
        return self._combine(module_name, known) if len(known) == len(digests) else None

    def tensor(self, module_name: str) -> Tensor:
        """Read a module's weight on the CPU, in the dtype in which it is stored.

        Raises:
            UnreadableCheckpoint: If its file is damaged.
        """
        keys = self._keys[module_name]
        parts = {key: self._stored.read(key) for key in keys}
        for key, part in parts.items():
            self._stored.digest(key, part)
        if module_name not in self._converted:
            return parts[keys[0]]
        assert self._names is not None
        return self._names().convert(module_name, parts)

    def identify(self, module_name: str, weight: Tensor) -> str:
        """Return the digest of a module's weight, which :meth:`tensor` has just read."""
        digest = self.fingerprint(module_name)
        assert digest is not None
        return digest

    def location(self, module_name: str) -> str:
        """Return ``tensor '<key>' of <file>``."""
        return " and ".join(
            f"tensor {key!r} of {self._stored.infos[key].path}" for key in self._keys[module_name]
        )

    def close(self) -> None:
        """Keep what was learnt of the files for the next time."""
        self._stored.keep_digests()

    def _combine(self, module_name: str, digests: Mapping[str, str]) -> str:
        if module_name not in self._converted:
            return digests[self._keys[module_name][0]]
        made = {"made into": module_name, "by": f"transformers {version('transformers')}"}
        return combined_digest({**digests, **made})

    def _check(self, module: str, keys: Sequence[str]) -> None:
        if not keys:
            name = f"{module}.weight"
            own = [key for key in self._stored.infos if f"{module}." in key]
            near = difflib.get_close_matches(name, own or self._stored.infos, n=1, cutoff=0)
            hint = f"; the nearest tensor is {near[0]!r}" if near else ""
            raise MissingTensor(
                f"{self._stored.name} holds no weight for module {module!r}: no tensor becomes "
                f"{name!r} when transformers loads the model{hint}"
            )
        for key in keys:
            info = self._stored.infos[key]
            if info.dtype not in FLOATS:
                raise UnreadableCheckpoint(
                    f"tensor {key!r} of {info.path} has dtype {info.dtype}: quantised codes, not "
                    "weights"
                )


def quantization_method(source: CheckpointFiles) -> str | None:
    """Return the method that a checkpoint's config says it is quantised with, None if none."""
    path = source.find("config.json")
    if path is None:
        return None
    quantization = read_json(path).get("quantization_config")
    if not isinstance(quantization, dict):
        return None
    return str(quantization.get("quant_method") or "unnamed method")
