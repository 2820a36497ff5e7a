"""The stored tensors of a checkpoint, by their keys: safetensors and PyTorch files."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .cache import Cache
from .digest import combined_digest, file_state, is_settled, tensor_digest
from .files import FORMATS, CheckpointFiles, UnreadableCheckpoint

__all__ = ["StoredTensors", "TensorInfo", "read_json"]

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

    Files are ``model.safetensors``, else ``pytorch_model.bin``, each whole or in shards with an
    index. PyTorch files are read with torch's weights-only loading and nothing else.

    Args:
        source: The checkpoint's files.
        cache: Keeps the digests of tensors, so that unchanged files need not be read for them.

    Raises:
        UnreadableCheckpoint: If there are no such files, or one is missing or damaged.
    """

    def __init__(self, source: CheckpointFiles, cache: Cache | None = None) -> None:
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


def _weight_files(source: CheckpointFiles) -> list[Path]:
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


def _shards(source: CheckpointFiles, index: Path) -> list[Path]:
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
        content = json.loads(path.read_text(encoding="utf-8"))
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
