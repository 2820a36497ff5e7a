"""Shared fixtures: no network, quiet host, a tiny random Llama; and which tests are slow."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")
# The tests run side by side: more threads for each would wait for one another, on tiny tensors.
os.environ.setdefault("OMP_NUM_THREADS", "1")
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
import pytest
import torch
from transformers import LlamaForCausalLM

from helpers import hosts, models
from helpers.slow import SLOW

atexit.register(shutil.rmtree, os.environ["ALPHALORA_CACHE"], ignore_errors=True)

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

SLOW_FIXTURES = pytest.StashKey[dict[Path, list[set[str]]]]()
"""The slow fixtures that the tests of each collected file take."""


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    return models.tiny_llama()


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


@pytest.fixture(scope="session")
def fresh_process():
    """Runs a Python of its own with these arguments; one that fails fails the test, unless told."""

    def run(*arguments, check: bool = True, **options) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, **{"capture_output": True, "text": True} | options)
        assert not check or done.returncode == 0, f"{done.stdout}{done.stderr}"[-5000:]
        return done

    return run


@pytest.fixture
def trainer_folder(tmp_path) -> Path:
    """Where a trainer of transformers or TRL writes."""
    return tmp_path


@pytest.fixture
def combinations() -> None:
    """For a test that is run with many combinations of options, and each takes its time."""


@pytest.fixture
def simulation() -> None:
    """For a test that draws at random again and again."""


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Where many pictures are drawn."""
    return tmp_path


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """`torch.compile` and Triton, of which nothing is left from other tests."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    yield torch.compile
    torch.compiler.reset()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Mark what is slow. Files that start the host or several processes come first: the last ones
    decide the time."""
    known = config.stash.setdefault(SLOW_FIXTURES, {})
    for item in items:
        taken = SLOW.keys() & item.fixturenames
        known.setdefault(item.path, []).append(taken)
        if taken:
            item.add_marker("slow")
    first = ("quickstart", "scale", "plugin")

    def place(item):
        folder = item.path.parent.name
        return first.index(folder) if folder in first else len(first)

    items.sort(key=place)


@pytest.fixture(scope="session")
def slow_fixtures(pytestconfig) -> dict[Path, list[set[str]]]:
    """Those that the tests of each file take, tests that `-m` leaves out too."""
    return pytestconfig.stash[SLOW_FIXTURES]


collect_ignore = ["plugin", "quickstart", "scale"] if hosts.WITHOUT_THE_HOST else []


def skip(report, path, error):
    """Turn a failure for want of a package into a skip."""
    if name := hosts.wanted_package(error):
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
    """What the support table says was tried must really run."""
    report = yield
    if hosts.WITHOUT_THE_HOST:
        skip(report, item.path, call.excinfo and call.excinfo.value)
        return report
    claimed = item.get_closest_marker("works") or item.get_closest_marker("refused")
    if report.skipped and claimed is not None:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} stands in the support table and must not be skipped"
    return report
