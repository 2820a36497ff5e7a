"""What was computed before, on disk: spectra and other facts by the digest of what they belong to.

An entry is one file, written whole, that begins with the digest of its content. A file that is
cut off, damaged or of another format is as good as none: its content is computed again and the
file is replaced. So any number of runs can share the directory.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ..files import cache_root, write_whole

_SLICE = 1 << 26
_SETTLED_SECONDS = 2.0


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's dtype, shape and values.

    Args:
        tensor: The tensor, on any device, of any dtype.

    Returns:
        Hexadecimal digest. Equal weights have equal digests, whatever file they come from.
    """
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().contiguous().reshape(-1)
    for part in flat.split(max(1, _SLICE // max(1, flat.itemsize))):
        digest.update(memoryview(part.cpu().view(torch.uint8).numpy()))
    return digest.hexdigest()


def combined_digest(parts: Mapping[str, str]) -> str:
    """Return one digest for several named ones, whatever their order."""
    return text_digest("\n".join(f"{name} {parts[name]}" for name in sorted(parts)))


def text_digest(text: str) -> str:
    """Return the SHA-256 of a text as hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_state(path: Path) -> list[int]:
    """Return what tells a file from what it was before: its size, times and inode."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def is_settled(state: list[int]) -> bool:
    """Whether a change from now on will show in a file's state.

    A file that changed a moment ago may change again without a new time stamp.
    """
    return time.time() - state[1] / 1e9 > _SETTLED_SECONDS


_FORMAT = b"alphalora-cache-1\n"
_DIGEST_BYTES = 32


class Cache:
    """A directory of entries.

    Args:
        directory: Where the entries are; made when the first one is written. None keeps nothing.
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self._writable = True
        self._lock = Lock()

    def get(self, kind: str, key: str) -> Any:
        """Return the JSON value of an entry, None if there is no sound one."""
        content = self._read(kind, key)
        return None if content is None else json.loads(content)

    def put(self, kind: str, key: str, value: Any) -> None:
        """Keep a JSON value."""
        self._write(kind, key, json.dumps(value).encode())

    def get_tensors(self, kind: str, key: str) -> dict[str, Tensor] | None:
        """Return the tensors of an entry, None if there is no sound one."""
        content = self._read(kind, key)
        if content is None:
            return None
        return torch.load(io.BytesIO(content), weights_only=True)

    def put_tensors(self, kind: str, key: str, value: Mapping[str, Tensor]) -> None:
        """Keep tensors by their names."""
        if self.directory is None:
            return
        buffer = io.BytesIO()
        torch.save({name: part.detach().cpu().clone() for name, part in value.items()}, buffer)
        self._write(kind, key, buffer.getvalue())

    def _path(self, kind: str, key: str) -> Path | None:
        if self.directory is None:
            return None
        name = text_digest(key)
        return self.directory / kind / name[:2] / name

    def _read(self, kind: str, key: str) -> bytes | None:
        path = self._path(kind, key)
        if path is None:
            return None
        try:
            content = path.read_bytes()
        except OSError:
            return None
        head = len(_FORMAT) + _DIGEST_BYTES
        body = content[head:]
        sound = content[:head] == _FORMAT + hashlib.sha256(body).digest()
        return body if sound else None

    def _write(self, kind: str, key: str, body: bytes) -> None:
        path = self._path(kind, key)
        if path is None or not self._writable:
            return
        try:
            write_whole(path, _FORMAT + hashlib.sha256(body).digest() + body, sync=False)
        except OSError as error:
            with self._lock:
                first, self._writable = self._writable, False
            if first:
                warnings.warn(
                    f"Nothing more is kept in the cache {self.directory}: {error}. Set "
                    "ALPHALORA_CACHE to a directory that can be written.",
                    stacklevel=2,
                )


def default_cache() -> Cache:
    """Return the cache in `spectra` of `cache_root`."""
    return Cache(cache_root() / "spectra")


def file_digest(path: Path, cache: Cache) -> str:
    """Return the SHA-256 of a file, from the cache if the file is still the same."""
    state = file_state(path)
    key = json.dumps([str(path.resolve()), state])
    digest = cache.get("whole-files", key)
    if digest is None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if is_settled(state):
            cache.put("whole-files", key, digest)
    return str(digest)
