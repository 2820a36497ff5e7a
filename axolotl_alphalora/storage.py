"""Paths as users write them, files written whole or not at all, and where the cache is."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import mkstemp

__all__ = ["cache_root", "expanded", "write_whole"]


def cache_root() -> Path:
    """Return the directory for converted models and spectra.

    `ALPHALORA_CACHE` names it; otherwise it is `axolotl-alphalora` in the user's cache directory.
    """
    if chosen := os.environ.get("ALPHALORA_CACHE"):
        return Path(chosen).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().resolve() / "axolotl-alphalora"


def expanded(path: str | os.PathLike[str]) -> str:
    """Return a path from a configuration, with `~` for the home directory as in a shell."""
    return os.path.expanduser(os.fspath(path))


def write_whole(path: Path, content: str | bytes, sync: bool = True) -> None:
    """Write a file, replacing an older one only once all of the new one is on disk.

    Args:
        path: The file to write; its directory must exist.
        content: The whole content; text is written as UTF-8 with ``\\n`` as line end.
        sync: Whether to wait until the disk has it; without, a power cut may leave less.

    Raises:
        OSError: If the file cannot be written. What was there before is still there then.
    """
    data = content.encode() if isinstance(content, str) else content
    descriptor, name = mkstemp(dir=path.parent, prefix=f".{path.name}.")
    draft = Path(name)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        draft.chmod(0o644)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
