"""Worlds of gloo ranks, forked from a process that has done its imports.

A process that has used a GPU cannot be forked for more work on one.
"""

import os
import signal
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState

SECONDS_FOR_A_RUN = 100


def in_a_world(ranks: int, store: Path, work: Callable[[], None], error: Path) -> list[int]:
    """Fork the ranks, let them work and wait; what fails leaves its traceback in `error`.

    Returns:
        Their exit codes.
    """
    children = [_fork() or _be_a_rank(rank, ranks, store, work, error) for rank in range(ranks)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes) and not error.exists():
        error.parent.mkdir(exist_ok=True)
        error.write_text("A rank died without a word: out of time, or killed.")
    return codes


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are other threads, which rest
        return os.fork()


def _be_a_rank(rank: int, ranks: int, store: Path, work: Callable[[], None], error: Path) -> None:
    code = 1
    signal.alarm(SECONDS_FOR_A_RUN)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
    }
    # Threads that stand in the parent only would be waited for; so would its only process.
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
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
