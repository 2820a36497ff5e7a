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


def smollm2() -> str:
    """The directory of SmolLM2-135M-Instruct, converted from its wheel the first time."""
    from rich.console import Console

    from axolotl_alphalora.quickstart.model import prepare_model

    return str(prepare_model(None, None, Console(stderr=True)))
