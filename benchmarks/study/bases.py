"""The base models of the study, and how they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..common import smollm2

BASES: dict[str, Callable[[], str]] = {"smollm2": smollm2}
"""Name of a base model to what makes its directory."""


def load(directory: str, device: str) -> tuple[Any, Any]:
    """Load a base model, frozen, and its tokenizer: fp32 on a CPU, bf16 on a GPU."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).to(device)
    return model.requires_grad_(False), AutoTokenizer.from_pretrained(directory)
