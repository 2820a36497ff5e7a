"""One cell: build, train, measure, and say all of it in one line."""

from __future__ import annotations

import ctypes
import gc
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from . import rows as study_rows
from .answers import answered
from .bases import BASES, load
from .cells import UNTRAINED, Cell
from .devices import place
from .measure import held_out, mean_loss
from .methods import METHODS, Bench
from .train import Recipe, train

PACKAGES = ("axolotl-alphalora", "torch", "transformers", "peft")


def run_cell(
    cell: Cell,
    data: Path,
    threads: int,
    answers: int | None = None,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Run one cell.

    Args:
        cell: Which.
        data: Directory of the data sets.
        threads: Of torch, which the caller has set.
        answers: Rows to answer; None is the default of the device.
        recipe: How to train, the study's own if None.

    Returns:
        The line of results.
    """
    recipe = recipe or Recipe()
    seconds: dict[str, float] = {}
    where = place(cell.device)
    forget_peak(where)
    with timed(seconds, "load"):
        directory = BASES[cell.base]()
        model, tokenizer = load(directory, cell.device)
        source = study_rows.read(cell.data, "train", data)
        training = study_rows.draw(source, cell.rows, tokenizer)
        tests = {
            name: study_rows.draw(
                study_rows.read(name, "test", data),
                count if name == cell.data else min(count, study_rows.OTHERS),
                tokenizer,
            )
            for name, count in study_rows.SETS.items()
        }
        text = study_rows.text(tokenizer)
    with timed(seconds, "build"):
        built = METHODS[cell.method](Bench(model, directory, training, cell.seed))
        built.model.to(where)
    trained = sum(p.numel() for p in built.model.parameters() if p.requires_grad)
    facts: dict[str, Any] = {"steps": 0}
    if cell.method != UNTRAINED:
        with timed(seconds, "train"):
            facts = train(built, training, recipe, cell.rate, cell.seed, where)
    with timed(seconds, "measure"):
        own = tests.pop(cell.data)
        measured = held_out(built.model, own, where)
        others = {name: mean_loss(built.model, found, where) for name, found in tests.items()}
        others["text"] = mean_loss(built.model, text, where)
    with timed(seconds, "answer"):
        right = answered(built.model, tokenizer, cell.data, own, source, where, answers)
    return {
        "cell": cell.key,
        **cell.as_dict(),
        "recipe": recipe.as_dict(),
        "digest": digest([*training, *own]),
        "parameters": trained,
        **built.facts,
        **facts,
        **measured,
        "others": others,
        "answered": right,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "peak_mib": round(peak(where)),
        "commit": commit(),
        "versions": {"python": platform.python_version(), **versions()},
        "machine": machine_name(),
        "threads": threads,
    }


def digest(rows: Sequence[study_rows.Row]) -> str:
    """16 hexadecimal digits of rows: the tokens, and which of them are labels."""
    said = repr([(row.ids, row.labels) for row in rows])
    return sha256(said.encode()).hexdigest()[:16]


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long a part took."""
    start = time.monotonic()
    yield
    seconds[name] = time.monotonic() - start


def commit() -> str:
    """The commit that ran, with a + where tracked files differ from it; empty outside git."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git(
        "status", "--porcelain", "--untracked-files=no", "--", "..", "../../axolotl_alphalora"
    )
    own = "benchmarks/study/results.jsonl"
    dirty = any(not line.endswith(own) for line in changed.splitlines())
    return git("rev-parse", "--short=10", "HEAD") + ("+" if dirty else "")


def versions() -> dict[str, str | None]:
    """Versions of what matters."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def machine_name() -> str:
    """The processor, or the GPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.machine()


def forget_peak(device: str) -> None:
    """Start the peak of memory anew."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak(device: str) -> float:
    """Peak of memory since then, in MiB: resident on a CPU, allocated on a GPU."""
    from ..common import peak_mib

    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else peak_mib()
