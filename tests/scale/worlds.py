"""Worlds of gloo ranks, forked from a process that has done its imports."""

import os
import signal
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

SECONDS_FOR_A_RUN = 100


def in_a_world(ranks: int, store: Path, work: Callable[[], None], error: Path) -> None:
    """Fork the ranks, let them work and wait; what fails leaves its traceback in `error`."""
    children = [os.fork() or _be_a_rank(rank, ranks, store, work, error) for rank in range(ranks)]
    for child in children:
        if os.waitpid(child, 0)[1] != 0 and not error.exists():
            error.parent.mkdir(exist_ok=True)
            error.write_text("A rank died without a word: out of time, or killed.")


def _be_a_rank(rank: int, ranks: int, store: Path, work: Callable[[], None], error: Path) -> None:
    code = 1
    signal.alarm(SECONDS_FOR_A_RUN)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
    }
    try:
        dist.init_process_group(
            "gloo", f"file://{store}", timedelta(seconds=60), rank=rank, world_size=ranks
        )
        work()
        dist.barrier()
        code = 0
    except BaseException:
        error.parent.mkdir(exist_ok=True)
        with error.open("a") as file:
            file.write(f"rank {rank}: {traceback.format_exc()}\n")
    finally:
        os._exit(code)
