"""Files that are written whole or not at all, and locks between processes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from axolotl_alphalora.files import write_whole

# The process of a quickstart that was killed a moment ago needs this long to be gone.
_PATIENCE_SECONDS = 5.0
_POLL_SECONDS = 0.1


class QuickstartError(click.ClickException):
    """A stage of the quickstart cannot go on; the message says what to do."""


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all.

    Args:
        path: The file to write; its directory must exist.
        value: Anything the `json` module can write.
    """
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing or damaged file counts as an empty one.

    Args:
        path: The file to read.

    Returns:
        The object, or an empty dictionary.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def digest(*parts: str | bytes) -> str:
    """Digest strings so that moving text from one part to the next changes the result.

    Args:
        parts: What to digest, in order.

    Returns:
        16 hexadecimal digits.
    """
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "big"))
        sha.update(data)
    return sha.hexdigest()[:16]


@contextmanager
def locked(path: Path, what: str, *, wait: bool = False) -> Iterator[int]:
    """Hold an exclusive lock on a file.

    A child process that is handed the descriptor keeps the lock for as long as it lives, even when
    its parent is killed.

    Args:
        path: The lock file; it is created and stays behind.
        what: What the lock protects, for the message.
        wait: Wait for the lock as long as it takes, not for seconds only.

    Yields:
        The file descriptor that holds the lock.

    Raises:
        QuickstartError: Another process holds the lock and `wait` is off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _acquire(descriptor, math.inf if wait else _PATIENCE_SECONDS):
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise QuickstartError(
                f"{what} is in use by another quickstart (process {holder}). "
                "Wait until it ends, or stop it, then run the same command again."
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
