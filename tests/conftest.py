"""Shared fixtures: no network, quiet host, a tiny random Llama."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")
# Threads that wait for each other without yielding stall on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# What one run of the tests keeps must not come from, or stay for, another.
os.environ["ALPHALORA_CACHE"] = tempfile.mkdtemp(prefix="alphalora-tests-")

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

atexit.register(shutil.rmtree, os.environ["ALPHALORA_CACHE"], ignore_errors=True)


def tiny_llama_config(**changes) -> LlamaConfig:
    """Two blocks, hidden 64: big enough for bitsandbytes' block size."""
    settings = {
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    return LlamaConfig(**(settings | changes))


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_llama_config())


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three rows of unequal length, padded right, labels masked on the padding and a prompt."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 97, (3, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    mask[2, 10:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :2] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def pytest_collection_modifyitems(items):
    """Files that start the host or several processes come first: the last ones decide the time."""
    slow = ("quickstart", "scale", "plugin")

    def place(item):
        folder = item.path.parent.name
        return slow.index(folder) if folder in slow else len(slow)

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What the README's support table says was tried must really run."""
    report = yield
    claimed = item.get_closest_marker("works") or item.get_closest_marker("refused")
    if report.skipped and claimed is not None:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} stands in the support table and must not be skipped"
    return report
