"""What the benchmarks share: fresh processes, medians with their spread, the machine's name."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any


def machine(packages: Sequence[str] = ("torch", "transformers")) -> str:
    """Processor or GPU, number of cores in use, and versions, in one line."""
    import torch

    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            name = next(line.split(":")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        pass
    parts = [f"{name}, {torch.get_num_threads()} of {os.cpu_count()} cores"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    parts.append(f"Python {platform.python_version()}")
    for package in packages:
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"no {package}")
    load = os.getloadavg()[0]
    return ", ".join(parts) + f"; load {load:.1f} at the start"


def peak_mib() -> float:
    """The process's peak resident memory so far, in MiB.

    Not what getrusage says: that begins with the peak of the process that started this one.
    """
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def in_fresh_process(module: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run a benchmark's child and return the JSON object that its last line holds."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range of repeated measurements."""
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


SHAPES: dict[str, tuple[int, int, int, int, int, int]] = {
    "tiny": (64, 128, 2, 4, 2, 32000),
    "135m": (576, 1536, 30, 9, 3, 49152),
    "1b": (2048, 8192, 16, 32, 8, 32000),
    "7b": (4096, 11008, 32, 32, 32, 32000),
    "8b": (4096, 14336, 32, 32, 8, 128256),
}
"""Hidden, intermediate, blocks, heads, key-value heads and vocabulary of Llamas."""

DTYPES = ("fp32", "bf16")


def load_shape(model: str, dtype: str, device: str, nf4: bool = False) -> Any:
    """Load a base model, frozen: a directory, a hub id, or a shape with random weights.

    Args:
        model: Which; a key of `SHAPES`, or where to load it from.
        dtype: One of `DTYPES`.
        device: Where to.
        nf4: Whether to quantise it to 4 bits; a shape is then saved and loaded again.
    """
    import tempfile

    import torch
    from transformers import (
        AutoModelForCausalLM,
        BitsAndBytesConfig,
        LlamaConfig,
        LlamaForCausalLM,
    )

    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    options: dict[str, Any] = {"dtype": kind, "device_map": {"": device}}
    if nf4:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=kind,
        )
    with tempfile.TemporaryDirectory() as folder:
        source = model
        if model in SHAPES:
            hidden, intermediate, blocks, heads, kv_heads, vocabulary = SHAPES[model]
            config = LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=hidden,
                intermediate_size=intermediate,
                num_hidden_layers=blocks,
                num_attention_heads=heads,
                num_key_value_heads=kv_heads,
                dtype=kind,
            )
            with torch.device(device):
                made = LlamaForCausalLM(config).to(kind)
            if not nf4:
                return made.requires_grad_(False)
            made.save_pretrained(source := folder)
            del made
        return AutoModelForCausalLM.from_pretrained(source, **options).requires_grad_(False)


def smollm2() -> str:
    """The directory of SmolLM2-135M-Instruct, converted from its wheel the first time."""
    from rich.console import Console

    from axolotl_alphalora.quickstart.model import prepare_model

    return str(prepare_model(None, None, Console(stderr=True)))
