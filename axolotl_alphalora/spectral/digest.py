"""Digests that tell weights apart by their content."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["combined_digest", "file_state", "is_settled", "tensor_digest", "text_digest"]

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
