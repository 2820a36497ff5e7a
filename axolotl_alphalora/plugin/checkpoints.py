"""What lies in a run's output directory: checkpoints, whole or not, and an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from . import host

_STATE = "trainer_state.json"


def trained_adapter(output_dir: str | Path) -> Path | None:
    """The adapter that a run left in its output directory, for verbs that were given none.

    Args:
        output_dir: The run's `output_dir`.

    Returns:
        The directory; None if there is neither a finished adapter nor a checkpoint.

    Raises:
        ValueError: If it is not clear which adapter is meant: there are only checkpoints, or
            checkpoints newer than the finished adapter.
    """
    folder = Path(output_dir)
    found = [path for path in folder.glob("checkpoint-*") if _holds_adapter(path)]
    checkpoints = sorted(found, key=_modified)
    if not checkpoints:
        return folder if _holds_adapter(folder) else None
    if _holds_adapter(folder) and _modified(folder) >= _modified(checkpoints[-1]):
        return folder
    reason = "has checkpoints that are newer than its adapter"
    if not _holds_adapter(folder):
        reason = "holds checkpoints but no finished adapter"
    raise ValueError(
        f"`output_dir: {folder}` {reason}, and no adapter was named. Add `--lora-model-dir DIR` "
        f"(or `lora_model_dir:` in the YAML), for example {checkpoints[-1]}."
    )


def _holds_adapter(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS))


def _modified(folder: Path) -> float:
    return (folder / ADAPTER_WEIGHTS).stat().st_mtime


def skip_unfinished(cfg: Any) -> None:
    """Let `auto_resume_from_checkpoints` start from the last checkpoint that is complete.

    The host takes the one with the highest number. If a newer one is unfinished, the last complete
    one is named instead; if none is complete, the run starts anew.

    Args:
        cfg: The host's configuration, which is changed.
    """
    if not cfg.auto_resume_from_checkpoints or cfg.resume_from_checkpoint:
        return
    log = host.get_logger(__name__)
    found = [p for p in Path(cfg.output_dir).glob("checkpoint-*") if _step(p) is not None]
    for folder in sorted(found, key=lambda p: _step(p) or 0, reverse=True):
        flaw = find_flaw(folder)
        if flaw is None:
            cfg.resume_from_checkpoint = str(folder)
            return
        log.warning("AlphaLoRA: %s is not complete and is skipped: %s.", folder, flaw)
    if found:
        log.warning(
            "AlphaLoRA: no checkpoint in %s is complete: the run starts anew.", cfg.output_dir
        )
        cfg.auto_resume_from_checkpoints = False


def find_flaw(folder: Path) -> str | None:
    """What a checkpoint lacks, in words; None if it is complete.

    The HF Trainer writes `trainer_state.json` last, so a checkpoint without it was interrupted.
    """
    try:
        json.loads((folder / _STATE).read_bytes())
    except (OSError, ValueError):
        return f"it has no whole {_STATE}, which is written last"
    if not (folder / ADAPTER_WEIGHTS).exists():
        return None  # saved in shards, by the engine that reads it
    return damage(folder / ADAPTER_WEIGHTS)


def damage(file: Path) -> str | None:
    """Why a file of weights cannot be read; None if its header and its length agree."""
    try:
        with safe_open(file, framework="pt") as content:
            content.keys()
    except (OSError, SafetensorError) as error:
        return f"{file.name} is damaged ({error})"
    return None


def _step(folder: Path) -> int | None:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else None
