"""A checkpoint's stored tensors by their keys, and the full-precision weights made of them."""

from __future__ import annotations

import difflib
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files import parse_json
from .cache import Cache, combined_digest, file_state, is_settled, tensor_digest
from .model_files import FORMATS, Directory, Repository, UnreadableCheckpoint

if TYPE_CHECKING:
    from .weight_names import WeightNames


_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
}
# torch raises a RuntimeError where a file is too large to be mapped.
_UNREADABLE = (SafetensorError, OSError, RuntimeError)


@dataclass(frozen=True)
class TensorInfo:
    """What a file's header says about a tensor.

    Attributes:
        path: The file.
        dtype: Its dtype: a torch name for floats, the file's own for anything else.
        shape: Its shape.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]


class StoredTensors:
    """The tensors in a checkpoint's files; only headers are read until a tensor is asked for.

    Files are `model.safetensors`, else `pytorch_model.bin`, each whole or in shards with an
    index. PyTorch files are read with torch's weights-only loading and nothing else.

    Args:
        source: The checkpoint's files.
        cache: Keeps the digests of tensors, so that unchanged files need not be read for them.

    Raises:
        UnreadableCheckpoint: If there are no such files, or one is missing or damaged.
    """

    def __init__(self, source: Directory | Repository, cache: Cache | None = None) -> None:
        self.name = source.name
        self._cache = cache or Cache(None)
        self.infos: dict[str, TensorInfo] = {}
        self._pickled: dict[Path, Mapping[str, Tensor]] = {}
        paths = _weight_files(source)
        self.format = "safetensors" if paths[0].suffix == ".safetensors" else "bin"
        for path in paths:
            self.infos |= self._header(path)
        self.revision = source.revision
        self._digests = {path: _FileDigests(path, self._cache) for path in paths}

    @property
    def layout(self) -> str:
        """A digest of all keys with their dtypes and shapes."""
        return combined_digest(
            {key: f"{info.dtype} {info.shape}" for key, info in self.infos.items()}
        )

    def read(self, key: str) -> Tensor:
        """Read a tensor on the CPU, as it is stored.

        Raises:
            UnreadableCheckpoint: If its file is damaged.
        """
        path = self.infos[key].path
        try:
            if path in self._pickled:
                return self._pickled[path][key]
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(key)
        except _UNREADABLE as error:
            raise UnreadableCheckpoint(f"cannot read tensor {key!r} of {path}: {error}") from error

    def known_digest(self, key: str) -> str | None:
        """Return a tensor's digest if it is known without reading the tensor."""
        return self._digests[self.infos[key].path].known.get(key)

    def digest(self, key: str, tensor: Tensor) -> str:
        """Return the digest of a tensor that was read, and remember it."""
        return self._digests[self.infos[key].path].learn(key, tensor)

    def keep_digests(self) -> None:
        """Write the digests learnt to the cache."""
        for digests in self._digests.values():
            digests.keep()

    def _header(self, path: Path) -> dict[str, TensorInfo]:
        if path.suffix != ".safetensors":
            self._pickled[path] = _load_pickled(path)
            return {
                key: TensorInfo(path, str(value.dtype).removeprefix("torch."), tuple(value.shape))
                for key, value in self._pickled[path].items()
            }
        infos = {}
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():
                    part = file.get_slice(key)
                    dtype = _DTYPES.get(part.get_dtype(), part.get_dtype())
                    infos[key] = TensorInfo(path, dtype, tuple(part.get_shape()))
        except _UNREADABLE as error:
            raise UnreadableCheckpoint(f"cannot read {path}: {error}") from error
        return infos


class _FileDigests:
    """The digests of a file's tensors, valid as long as the file is the same."""

    def __init__(self, path: Path, cache: Cache) -> None:
        self._path = path
        self._cache = cache
        self._state = file_state(path)
        self._settled = is_settled(self._state)  # if so, a change from here on is another state
        self._new = False
        entry = cache.get("files", str(path.resolve()))
        same = entry is not None and entry["state"] == self._state
        self.known: dict[str, str] = entry["digests"] if same else {}

    def learn(self, key: str, tensor: Tensor) -> str:
        if key not in self.known:
            self.known[key] = tensor_digest(tensor)
            self._new = True
        return self.known[key]

    def keep(self) -> None:
        if self._new and self._settled:
            value = {"state": self._state, "digests": self.known}
            self._cache.put("files", str(self._path.resolve()), value)
            self._new = False


def _weight_files(source: Directory | Repository) -> list[Path]:
    """Return the files of the first format there is, each once."""
    for single in FORMATS:
        path = source.find(single)
        if path is not None:
            return [path]
        index = source.find(f"{single}.index.json")
        if index is not None:
            return _shards(source, index)
    raise UnreadableCheckpoint(
        f"{source.name} has neither {' nor '.join(FORMATS)}, whole or in shards with an index"
        f"{source.what_else()}"
    )


def _shards(source: Directory | Repository, index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnreadableCheckpoint(f"{index} has no weight_map")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise UnreadableCheckpoint(f"{index}: the weight_map does not name files")
    shards = []
    for name in sorted(set(weight_map.values())):
        path = source.find(name)
        if path is None:
            raise UnreadableCheckpoint(f"{index} names {name}, which is missing")
        shards.append(path)
    return shards


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint, or raise UnreadableCheckpoint."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnreadableCheckpoint(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise UnreadableCheckpoint(f"{path} holds no JSON object")
    return content


def _load_pickled(path: Path) -> dict[str, Tensor]:
    """Map a PyTorch file into memory; nothing in it may run code."""
    try:
        mapped = zipfile.is_zipfile(path)  # the format before torch 1.6 cannot be mapped
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises pickle, runtime and value errors for bad files
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it refers to {named[1]}" if named else str(error).partition("\n")[0]
        raise UnreadableCheckpoint(
            f"cannot read {path} with torch's weights-only loading ({what}), and nothing else is "
            "used on files that may run code: convert the checkpoint to safetensors"
        ) from error
    if not isinstance(content, dict):
        raise UnreadableCheckpoint(f"{path} holds a {type(content).__name__}, not a state dict")
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


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
        names: Returns the conversions; called only for a module in `converted`.
        left_out: What of the files no module takes, see
            `WeightNames.left_out`.

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
            `source`: `"safetensors"` or `"bin"`; `dtype`: that of the weights, several
            joined by `+`; `revision`: the commit of a repository, None for a directory;
            `quantization`: None. Where there are any, also the lists of what no module took.
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
        """Return the digest of a module's weight, which `tensor` has just read."""
        digest = self.fingerprint(module_name)
        assert digest is not None
        return digest

    def location(self, module_name: str) -> str:
        """Return `tensor '<key>' of <file>`."""
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


def quantization_method(source: Directory | Repository) -> str | None:
    """Return the method that a checkpoint's config says it is quantised with, None if none."""
    path = source.find("config.json")
    if path is None:
        return None
    quantization = read_json(path).get("quantization_config")
    if not isinstance(quantization, dict):
        return None
    return str(quantization.get("quant_method") or "unnamed method")
