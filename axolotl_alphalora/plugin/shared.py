"""Work that one process does for all."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

_Result = TypeVar("_Result")

# A collective of the host's own would give up on a long wait, and NCCL would take the run with it.
_PATIENCE = timedelta(days=2)


def is_first_process() -> bool:
    """Whether this is the process that works and prints for all.

    The host's own answer goes by accelerate, which takes ranks without a GPU for single runs.
    """
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def progress_bar(what: str, unit: str, total: int) -> Callable[[Any], None]:
    """Show a bar in the run's output; what it returns is called after each unit of work."""
    from ..hosts.transformers import progress

    bar = progress(
        total=total, desc=f"AlphaLoRA: {what}", unit=unit, disable=not is_first_process()
    )

    def step(_: Any) -> None:
        bar.update()
        if bar.n >= total:
            bar.close()

    return step


def on_one_process(work: Callable[[], _Result]) -> _Result:
    """Let the first process of a launch work, and give its result to all.

    The others wait. Where the work fails, the same error is raised in every process; where the
    first process is killed, the others get an error from the lost connection.

    Args:
        work: What to do; its result must be picklable.

    Raises:
        Exception: Whatever the work raises.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return work()
    group: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)
    outcome: list[tuple[_Result | None, BaseException | None]] = [(None, None)]
    if dist.get_rank() == 0:
        try:
            outcome = [(work(), None)]
        except BaseException as error:
            outcome = [(None, _portable(error))]
    dist.broadcast_object_list(outcome, src=0, group=group)
    dist.destroy_process_group(group)
    result, failure = outcome[0]
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]


def _portable(error: BaseException) -> BaseException:
    """Return an error that survives pickling: itself if it does."""
    try:
        pickle.dumps(error)
        twin = copy.copy(error)  # made from the parts that a pickle would hold
    except Exception:
        twin = None
    same = type(twin) is type(error) and str(twin) == str(error)
    return error if same else RuntimeError(f"{type(error).__name__}: {error}")
