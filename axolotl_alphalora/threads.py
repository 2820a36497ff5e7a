"""How many threads torch's CPU operators take."""

from __future__ import annotations

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
