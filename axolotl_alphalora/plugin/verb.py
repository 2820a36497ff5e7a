"""What each of the host's commands means for a routed adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..files import ADAPTER_CONFIG, ADAPTER_WEIGHTS

RUNS_ADAPTER = ("evaluate", "inference")
"""Verbs that run an adapter which is there."""

WHOLE_MODEL: Mapping[str, str] = {
    "quantize": "quantises a whole model",
    "export": "converts a whole model to GGUF",
    "vllm_serve": "serves a whole model or plain LoRA with vLLM",
}
"""Verbs that need one weight per layer; `merge-lora` sets an option, which is refused."""


def check_verb(verb: str | None) -> None:
    """Refuse a command that cannot work with experts chosen per token.

    Raises:
        ValueError: If the command needs a merged model; names it.
    """
    if verb is not None and verb in WHOLE_MODEL:
        raise ValueError(
            f"`axolotl {verb.replace('_', '-')}` {WHOLE_MODEL[verb]}, but a routed adapter "
            "(`adapter: alphalora`) chooses experts per token, so there is no single weight to "
            "merge. Make a plain LoRA of it first (`alphalora export OUTPUT_DIR --data CONFIG.yml "
            "--output LORA_DIR`), or load the adapter beside its base model with PEFT after "
            "`import axolotl_alphalora.adapter`."
        )


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
