"""Paths as users write them, files written whole or not at all, the cache, a saved adapter's files.

Knows what a saved adapter's configuration means, and nothing of PEFT, torch or the host.
"""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from tempfile import mkstemp
from typing import Any

from packaging.version import InvalidVersion, Version

from . import __version__

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"
ADAPTER_CARD = "README.md"
PROBE = "probe.json"
"""Names of the files in which PEFT saves an adapter: its settings, its weights (now, and as older
releases do), and its model card; and what it answers, which we write beside it."""

KEY_PREFIX = "base_model.model."
"""What PEFT puts before the name of a module of the base model, in the keys of the weights."""

METHOD = "ALPHALORA"
"""The `peft_type` of our adapters."""

FORMAT_SINCE = "0.1.0"
"""The release that introduced the format in which adapters are saved now."""


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


def adapter_below(folder: Path) -> Path | None:
    """Return the newest of the adapters right below a directory, such as a checkpoint; or None."""
    found = sorted(folder.glob(f"*/{ADAPTER_CONFIG}"), key=lambda path: path.stat().st_mtime)
    return found[-1].parent if found else None


def write_whole(path: Path, content: str | bytes, sync: bool = True) -> None:
    """Write a file, replacing an older one only once all of the new one is on disk.

    A link stays, and what it names is replaced. A device or a pipe is written to.

    Args:
        path: The file to write; directories on the way to it are made.
        content: The whole content; text is written as UTF-8 with `\\n` as line end.
        sync: Whether to wait until the disk has it; without, a power cut may leave less.

    Raises:
        OSError: If the file cannot be written. What was there before is still there then.
    """
    data = content.encode() if isinstance(content, str) else content
    if _is_special(path):
        path.write_bytes(data)
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
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


def check_writable(path: Path) -> None:
    """Check that `write_whole` can write a file, without making the directories on the way.

    Raises:
        OSError: If it cannot.
    """
    if _is_special(path):
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return
    path = Path(os.path.realpath(path))
    folder = next(parent for parent in path.parents if parent.exists())
    descriptor, name = mkstemp(dir=folder, prefix=f".{path.name}.")
    os.close(descriptor)
    os.unlink(name)


def _is_special(path: Path) -> bool:
    """Whether something is there that is no regular file, whose content could be replaced."""
    return path.exists() and not path.is_file()


def parse_json(text: str | bytes) -> Any:
    """Read JSON.

    Raises:
        ValueError: If it is none, or is nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise json.JSONDecodeError("it is nested too deeply", "", 0) from error


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read the settings of a saved adapter, whatever its method.

    Returns:
        Its `adapter_config.json`; empty if that holds no JSON object.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is no JSON.
    """
    settings = parse_json((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return settings if isinstance(settings, dict) else {}


def expert_scaling(lora_alpha: float, rank: int, use_rslora: bool = False) -> float:
    """Factor on the output of an expert: `lora_alpha / rank`, `/ sqrt(rank)` with rsLoRA."""
    return lora_alpha / (math.sqrt(rank) if use_rslora else rank)


def check_version(needed: Any) -> None:
    """Check that this release reads an adapter.

    Raises:
        ValueError: If a newer release is needed; says which.
    """
    try:
        newer = Version(needed) > Version(__version__)
    except (InvalidVersion, TypeError) as error:
        raise ValueError(f"needs_version must be a version, not {needed!r}.") from error
    if newer:
        raise ValueError(
            f"This adapter needs axolotl-alphalora {needed} or newer, and {__version__} is "
            "installed. Install a checkout of that release, or a newer one."
        )
