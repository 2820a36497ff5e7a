"""What the benchmarks share: fresh processes, medians with their spread, the machine's name."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
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


def saved_by(module: str, *arguments: str) -> dict[str, Any]:
    """Run a benchmark in a fresh process and return what its ``--json`` writes.

    Args:
        module: The benchmark.
        *arguments: Its options; what it prints goes to stderr.

    Raises:
        subprocess.CalledProcessError: If it fails.
    """
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        command = [sys.executable, "-m", module, *arguments, "--json", str(file)]
        subprocess.run(command, stdout=2, check=True)  # sys.stderr may have no number
        return json.loads(file.read_text())


def save(file: Path | None, results: dict[str, Any]) -> None:
    """Write a benchmark's results as JSON, whole or not at all; nothing if there is no file."""
    from axolotl_alphalora.files import write_whole

    if file is not None:
        write_whole(file, json.dumps(results, indent=2) + "\n")


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What a benchmark was run with, as its results record it."""
    return {key: value for key, value in vars(options).items() if key != "json"}


def summary(values: Iterable[float]) -> dict[str, Any]:
    """Median and range of repeated measurements, and all of them, as results record them."""
    every = list(values)
    return {"median": median(every), "low": min(every), "high": max(every), "values": every}


def spread(values: Sequence[float] | dict[str, Any], digits: int = 2) -> str:
    """Median and range of repeated measurements, or of their summary, in words."""
    known = values if isinstance(values, dict) else summary(values)
    middle, low, high = (f"{known[key]:.{digits}f}" for key in ("median", "low", "high"))
    return f"{middle} ({low} to {high})"


def command_line(description: str | None, repeats: int = 5) -> argparse.ArgumentParser:
    """The options of a benchmark that runs a base model with adapters; see `parsed`."""
    import torch

    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="135m")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--experts", type=int, default=5)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--dtype", choices=DTYPES, help="bf16 on a GPU, else fp32")
    parser.add_argument("--nf4", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line of a parser that `command_line` made."""
    options = parser.parse_args()
    options.dtype = options.dtype or ("fp32" if options.device == "cpu" else "bf16")
    return options


def random_ids(base: Any, batch: int, length: int, device: str) -> Any:
    """The same random tokens of a model's vocabulary every time: [batch, length]."""
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, base.config.vocab_size, (batch, length), generator=generator)
    return ids.to(device)


SHAPES: dict[str, tuple[int, int, int, int, int, int]] = {
    "tiny": (64, 128, 2, 4, 2, 32000),
    "135m": (576, 1536, 30, 9, 3, 49152),
    "1b": (2048, 8192, 16, 32, 8, 32000),
    "7b": (4096, 11008, 32, 32, 32, 32000),
    "8b": (4096, 14336, 32, 32, 8, 128256),
}
"""Hidden, intermediate, blocks, heads, key-value heads and vocabulary of Llamas."""

DTYPES = ("fp32", "bf16")


def shape_config(shape: str) -> Any:
    """The configuration of a Llama of one of the `SHAPES`."""
    from transformers import LlamaConfig

    hidden, intermediate, blocks, heads, kv_heads, vocabulary = SHAPES[shape]
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
    )


def make_shape(shape: str, dtype: str, device: str) -> Any:
    """A Llama of one of the `SHAPES` with random weights."""
    import torch
    from transformers import LlamaForCausalLM

    config = shape_config(shape)
    config.dtype = _dtype(dtype)
    with torch.device(device):
        made: Any = LlamaForCausalLM(config)
    return made.to(config.dtype)


def load_shape(model: str, dtype: str, device: str, nf4: bool = False) -> Any:
    """Load a base model, frozen: a directory, a hub id, or a shape with random weights.

    Args:
        model: Which; a key of `SHAPES`, or where to load it from.
        dtype: One of `DTYPES`.
        device: Where to.
        nf4: Whether to quantise it to 4 bits; a shape is then saved and loaded again.
    """
    import tempfile

    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if model in SHAPES and not nf4:
        return make_shape(model, dtype, device).requires_grad_(False)
    kind = _dtype(dtype)
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
            make_shape(model, dtype, device).save_pretrained(source := folder)
            gc.collect()  # what was saved must not stay beside what is loaded
        return AutoModelForCausalLM.from_pretrained(source, **options).requires_grad_(False)


def _dtype(name: str) -> Any:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


def smollm2() -> str:
    """The directory of SmolLM2-135M-Instruct, converted from its wheel the first time."""
    from rich.console import Console

    from axolotl_alphalora.quickstart.model import prepare_model

    return str(prepare_model(None, None, Console(stderr=True)))
