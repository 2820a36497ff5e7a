"""Contestants that are ready to take their steps, and what is counted of one before it does."""

from __future__ import annotations

import argparse
import ctypes
import gc
from collections.abc import Callable
from typing import Any

import torch

from .common import load_shape, random_ids
from .contestants import Contestant, build
from .measures import count_kernels, count_operators, graph_breaks, kept_bytes
from .workers import Worker

__all__ = ["Field"]


class Field:
    """Where contestants take part: each in a process of its own, or all in this one.

    A context manager; at its end those processes end.

    Args:
        options: As `benchmarks.training_step` reads them.
        separate: Whether each has a process and a base model of its own. Else they share one.
    """

    def __init__(self, options: argparse.Namespace, separate: bool) -> None:
        self._entrants: list[Worker] = []
        self._base: Any = None
        if not separate:
            self._base = load_base(options)
            ids = random_ids(self._base, options.batch, options.length, options.device)
            # What is allocated once stays from here on.
            build("none", self._base, ids, options).step()
            del ids
            self._alone = allocated()

    def __enter__(self) -> Field:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """End the processes of those that have taken part; here, collect what nobody holds."""
        for entrant in self._entrants:
            entrant.close()
        self._entrants.clear()
        gc.collect()

    def enter(
        self, name: str, options: argparse.Namespace, counting: bool
    ) -> tuple[dict[str, Any], Worker | Contestant]:
        """Build a contestant.

        Args:
            name: One of `benchmarks.contestants.CONTESTANTS`.
            options: As `benchmarks.training_step` reads them.
            counting: Whether to count what is the same in every step, see `count`.

        Returns:
            What there is to say of it, and what takes its steps.

        Raises:
            Absent: If it cannot take part here.
        """
        if self._base is not None:
            return entered(name, self._base, options, counting, allocated() - self._alone)
        entrant = Worker(alone, name, options, counting)
        self._entrants.append(entrant)
        return entrant.facts, entrant


def load_base(options: argparse.Namespace) -> Any:
    """Load the base model, the same every time."""
    torch.manual_seed(0)
    return load_shape(options.model, options.dtype, options.device, options.nf4)


def alone(
    name: str, options: argparse.Namespace, counting: bool
) -> tuple[dict[str, Any], Callable[[], float]]:
    """Build a contestant on a base model of its own, for a `Worker`.

    What the allocator keeps of a step is given back after it, since the others need memory too; so
    a step that is not timed comes before each.
    """
    facts, run = entered(name, load_base(options), options, counting, others=0)

    def step() -> float:
        run.step()
        seconds = run.step()
        give_back()
        return seconds

    give_back()
    return facts, step


def give_back() -> None:
    """Have the C library's allocator return what is free, where it is glibc's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def entered(
    name: str, base: Any, options: argparse.Namespace, counting: bool, others: int
) -> tuple[dict[str, Any], Contestant]:
    """Build a contestant.

    Args:
        name: Which.
        base: The base model.
        options: As `benchmarks.training_step` reads them.
        counting: Whether to count.
        others: Bytes on the GPU that others hold.

    Returns:
        Its trained ``parameters`` and what `count` returns; and itself.
    """
    ids = random_ids(base, options.batch, options.length, options.device)
    run = build(name, base, ids, options)
    counted = count(run, others, options.compile_check) if counting else {}
    return {"parameters": run.parameters, **counted}, run


def allocated() -> int:
    """Bytes that tensors take on the GPU."""
    gc.collect()
    return torch.cuda.memory_allocated()


def count(run: Contestant, others: int, compile_check: bool) -> dict[str, Any]:
    """What is the same in every step; the first steps, which warm up, are taken on the way.

    Args:
        run: Whose step.
        others: Bytes on the GPU that others hold.
        compile_check: Whether to count graph breaks.
    """
    cuda = run.ids.is_cuda
    kept = kept_bytes(run) / run.ids.numel()
    run.step()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    run.step()
    peak = torch.cuda.max_memory_allocated() - others if cuda else None
    return {
        "kept_bytes": kept,
        "peak_bytes": peak,
        "ops": (count_kernels if cuda else count_operators)(run.gradients),
        "kind_of_ops": "kernels" if cuda else "operators",
        "graph_breaks": count_breaks(run) if compile_check else None,
    }


def count_breaks(run: Contestant) -> int:
    """Graph breaks of the model itself: what makes its inputs need gradients breaks every graph."""
    run.model.disable_input_require_grads()
    try:
        return graph_breaks(run)
    finally:
        run.model.enable_input_require_grads()
