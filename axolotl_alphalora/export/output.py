"""Where an export goes: checked before any work, and filled whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..adapter import AlphaLoraLayer
from ..files import ADAPTER_CONFIG, check_writable
from ..hosts.peft import get_peft_model_state_dict
from ..hosts.transformers import Conv1D
from .factors import Factors
from .llama_cpp import GgufType, save_gguf
from .lora import save_lora

RECORD = "alphalora_export.json"
_DRAFT = ".exporting-"
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "*.model",
)


def check_output(output: Path, gguf: Path | None = None) -> None:
    """Check that an export can be written, before any work is done for it.

    Args:
        output: Its directory.
        gguf: The file for llama.cpp.

    Raises:
        ValueError: If there is something already, or the file for llama.cpp would be no file.
        OSError: If nothing can be written there.
    """
    there = output.iterdir() if output.is_dir() else [output] if output.exists() else []
    if any(not path.name.startswith(_DRAFT) for path in there):
        raise ValueError(f"{output} is not empty: name a new directory with --output.")
    if gguf is not None:
        if gguf.exists() and not gguf.is_file() or gguf.resolve() == output.resolve():
            raise ValueError(f"--gguf {gguf} is no file: name one.")
        check_writable(gguf)
    draft = _draft(output)
    draft.mkdir(parents=True)
    draft.rmdir()


def write_export(
    model: Any,
    layers: Sequence[AlphaLoraLayer],
    updates: Mapping[str, Factors],
    adapter: Path,
    output: Path,
    files: Mapping[str, str],
    prefix: str | None,
    gguf: Path | None,
    gguf_type: GgufType,
) -> None:
    """Write all of the export beside where it belongs, and move it there when it is whole.

    Embeddings that were resized, and not trained, are left out: no base takes them.
    """
    whole = bool(model.peft_config["default"].modules_to_save)
    saved = get_peft_model_state_dict(model, save_embedding_layers="auto" if whole else False)
    beside = None
    if gguf is not None:
        gguf = Path(os.path.realpath(gguf))  # a link stays
        if not is_inside(gguf, output):
            gguf.parent.mkdir(parents=True, exist_ok=True)
            beside = _draft(gguf)
    draft = _draft(output)
    try:
        draft.mkdir()
        save_lora(
            draft,
            updates,
            model.peft_config["default"],
            {
                key: value
                for key, value in saved.items()
                if "alphalora_" not in key and ".base_layer." not in key
            },
            dtype=layers[0].alphalora_A["default"].dtype,
            fan_in_fan_out=any(isinstance(layer.get_base_layer(), Conv1D) for layer in layers),
            prefix=prefix,
        )
        for pattern in _TOKENIZER:
            for file in adapter.glob(pattern):
                shutil.copy2(file, draft)
        for name, text in files.items():
            (draft / name).write_text(text, encoding="utf-8")
        if gguf is not None:
            config = model.get_base_model().config
            save_gguf(beside or draft / gguf.name, updates, config, dtype=gguf_type)
        _put(draft, output)
        if gguf is not None and beside is not None:
            beside.replace(gguf)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        if beside is not None:
            beside.unlink(missing_ok=True)
        raise


def is_inside(file: Path, folder: Path) -> bool:
    return file.parent.resolve() == folder.resolve()


def _draft(output: Path) -> Path:
    """Where something is written before it is whole: in a directory that is there, or beside."""
    place = output if output.is_dir() else output.parent
    return place / f"{_DRAFT}{uuid4().hex[:8]}"


def _put(draft: Path, output: Path) -> None:
    """Move a whole export to its place; killed in between, it has no config, so is no adapter."""
    if not output.is_dir():
        draft.rename(output)
        return
    files = sorted(draft.iterdir(), key=lambda file: file.name == ADAPTER_CONFIG)
    try:
        for file in files:
            file.rename(output / file.name)
    except BaseException:
        for file in files:
            (output / file.name).unlink(missing_ok=True)
        raise
    draft.rmdir()
