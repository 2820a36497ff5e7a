"""How many threads torch's CPU operators take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def same_threads_after() -> Iterator[None]:
    """Set the number of threads as it was: what a worker sets is taken over by later threads."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: on small tensors threads cost more in waiting than they win."""
    with same_threads_after():
        torch.set_num_threads(1)
        yield


def leave_busy_cores() -> str | None:
    """Take no more threads than there are idle cores.

    Where other processes have the cores, each small operator waits for the thread that has none,
    and two threads are many times slower than one. `OMP_NUM_THREADS` says otherwise.

    Returns:
        What was done, in words; None if nothing.
    """
    threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ or not hasattr(os, "getloadavg"):
        return None
    load = os.getloadavg()[0]
    idle = max(1, round((os.cpu_count() or 1) - load))
    if idle >= threads:
        return None
    torch.set_num_threads(idle)
    return (
        f"Other processes keep the cores busy (load {load:.1f}): computing with {idle} of "
        f"{threads} threads. OMP_NUM_THREADS sets another number."
    )
