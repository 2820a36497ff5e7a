"""A trained adapter on its base model, for looking at it after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..files import KEY_PREFIX
from ..hosts.constants import NF4


def load_base(
    name: str,
    *,
    revision: str | None = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
) -> Any:
    """Load a base model.

    It computes in fp32 on a CPU, where half precisions are slow, and in its checkpoint's dtype on
    an accelerator. 4-bit is nf4 with double quantisation, as Axolotl's.

    Args:
        name: Directory or hub id.
        revision: Of a repository.
        load_in_4bit: Whether to quantise it to 4 bits.
        load_in_8bit: Whether to quantise it to 8 bits.

    Raises:
        ValueError: If it cannot be found, or both quantisations are asked for.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if load_in_4bit and load_in_8bit:
        raise ValueError("4-bit or 8-bit: a model cannot be loaded in both.")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    dtype: Any = torch.float32 if device is None else "auto"
    options: dict[str, Any] = {
        "dtype": dtype,
        "device_map": {"": str(device or "cpu")},
        "revision": revision or "main",
    }
    if load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            **NF4, bnb_4bit_compute_dtype=torch.float32 if device is None else torch.bfloat16
        )
    elif load_in_8bit:
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    try:
        return AutoModelForCausalLM.from_pretrained(name, **options)
    except OSError as error:
        raise ValueError(
            f"the base model {name} cannot be loaded ({error}). Name its directory with "
            "--base-model if it has moved."
        ) from error


def load_adapted(base: Any, adapter: Path) -> Any:
    """Put a saved adapter on its base model, in evaluation mode, without gradients.

    Where training has added tokens, the base's embeddings are brought to the adapter's size.

    Raises:
        ValueError: If the adapter does not fit the base.
    """
    from peft import PeftModel

    rows = _vocabulary(base, adapter)
    if rows is not None and rows != base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(rows)
    try:
        model = PeftModel.from_pretrained(base, str(adapter))
    except RuntimeError as error:
        raise ValueError(f"{adapter} does not fit the base model: {error}") from error
    return model.eval().requires_grad_(False)


def _vocabulary(base: Any, adapter: Path) -> int | None:
    """Rows of the embeddings or the head that an adapter holds; None if it holds neither."""
    from ..inspection import open_weights

    layers = (base.get_input_embeddings(), base.get_output_embeddings())
    names = {
        f"{KEY_PREFIX}{name}.weight"
        for name, module in base.named_modules()
        if any(module is layer for layer in layers)
    }
    with open_weights(adapter) as file:
        for key in names & set(file.keys()):
            return file.get_slice(key).get_shape()[0]
    return None


def load_tokenizer(adapter: Path, base: str) -> Any:
    """Load the tokenizer that was saved with an adapter, or else the base model's.

    Raises:
        ValueError: If there is none.
    """
    from transformers import AutoTokenizer

    name = str(adapter) if (adapter / "tokenizer_config.json").is_file() else base
    try:
        return AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise ValueError(f"there is no tokenizer in {name}: {error}") from error
