"""Shared fixtures: no network, quiet host, a tiny random Llama."""

import atexit
import os
import shutil
import sys
import tempfile
import traceback
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")
# Threads that wait for each other without yielding stall on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# What one run of the tests keeps must not come from, or stay for, another.
os.environ["ALPHALORA_CACHE"] = tempfile.mkdtemp(prefix="alphalora-tests-")
if sys.dont_write_bytecode:
    # Every process would compile all packages anew, which takes longer than most tests.
    sys.dont_write_bytecode = False
    os.environ["PYTHONDONTWRITEBYTECODE"] = ""
    sys.pycache_prefix = tempfile.mkdtemp(prefix="alphalora-bytecode-")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    atexit.register(shutil.rmtree, sys.pycache_prefix, ignore_errors=True)
if "ATEN_CPU_CAPABILITY" in os.environ:
    # torch would take kernels that another run compiled for the whole processor, and get NaN.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="alphalora-kernels-")
    atexit.register(shutil.rmtree, os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)

import hypothesis
import peft
import pytest
import torch
from packaging.version import Version
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.peft import MIN_PEFT_VERSION

atexit.register(shutil.rmtree, os.environ["ALPHALORA_CACHE"], ignore_errors=True)

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

TRANSFORMERS_TAKES_PEFT = Version(peft.__version__) >= Version(MIN_PEFT_VERSION)
needs_add_adapter_of_transformers = pytest.mark.skipif(
    not TRANSFORMERS_TAKES_PEFT, reason=f"transformers wants PEFT {MIN_PEFT_VERSION} for it"
)


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


ROOT = Path(__file__).parents[1]
ABOVE_THE_CORE = ("tests", "benchmarks", "axolotl_alphalora/plugin", "axolotl_alphalora/quickstart")
WITHOUT_THE_HOST = find_spec("axolotl") is None
collect_ignore = ["plugin", "quickstart", "scale"] if WITHOUT_THE_HOST else []


def wanted_package(error: BaseException | None) -> str | None:
    """Where Axolotl is not installed: the package that a test, not the core, wanted in vain."""
    if not (WITHOUT_THE_HOST and isinstance(error, ModuleNotFoundError)):
        return None
    frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    frames = [path for path in frames if path.is_absolute()]  # not those of the import itself
    above = any(frames[-1].is_relative_to(ROOT / folder) for folder in ABOVE_THE_CORE)
    return error.name if above else None


def skip(report, path, error):
    """Turn a failure for want of a package into a skip."""
    if name := wanted_package(error):
        report.outcome, report.longrepr = "skipped", (str(path), 0, f"Skipped: needs {name}")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Tests of what needs the host are left out where only the core is installed."""
    report = yield
    failed = report.call.excinfo
    skip(report, collector.path, failed and failed.value.__cause__)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What the README's support table says was tried must really run."""
    report = yield
    if WITHOUT_THE_HOST:
        skip(report, item.path, call.excinfo and call.excinfo.value)
        return report
    claimed = item.get_closest_marker("works") or item.get_closest_marker("refused")
    if report.skipped and claimed is not None:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} stands in the support table and must not be skipped"
    return report
