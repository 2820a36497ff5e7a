"""Training steps that are taken in turn, and what is counted of one.

On a CPU a step's time depends on what its process did before: the allocator gives back what a
larger model's step has freed, and the next step faults those pages in again. So there every
contestant has a process and a base model of its own; on a GPU they share one process and one base.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .common import load_shape, random_ids
from .contestants import Absent, Contestant, build

Facts = dict[str, Any]
Maker = Callable[..., tuple[Any, Callable[[], float]]]
"""Makes what is to be stepped: what there is to say of it, and the step, which returns seconds."""


class Steps(Protocol):
    """What takes steps that are timed."""

    def step(self) -> float:
        """Take one; seconds."""
        ...


def take_steps(
    names: Sequence[str], options: argparse.Namespace, base: Any = None
) -> tuple[dict[str, Facts], dict[str, str], dict[str, list[float]]]:
    """Let contestants take their steps in turn, and count what is the same in every step.

    Args:
        names: Of `benchmarks.contestants.CONTESTANTS` and `MORE`.
        options: As `benchmarks.training_step` reads them.
        base: The base model that they share; None gives each a process and a base of its own.

    Returns:
        Contestant to what `counted` says, contestant to why it is absent, and contestant to the
        seconds of its steps.
    """
    facts: dict[str, Facts] = {}
    absent: dict[str, str] = {}
    runs: dict[str, Steps] = {}
    if base is not None:
        ids = random_ids(base, options.batch, options.length, options.device)
        build("none", base, ids, options).step()  # what is allocated once stays from here on
        alone = allocated()
    with ExitStack() as stack:
        for name in names:
            try:
                if base is None:
                    worker = stack.enter_context(closing(Worker(in_own_process, name, options)))
                    facts[name], runs[name] = worker.facts, worker
                else:
                    entrant = enter(name, base, options, allocated() - alone)
                    facts[name], runs[name] = entrant
            except Absent as reason:
                absent[name] = str(reason)
            except torch.OutOfMemoryError as error:
                absent[name] = f"out of memory: {str(error).splitlines()[0]}"
        times = in_turn(runs, options.repeats)
    runs.clear()
    gc.collect()
    return facts, absent, times


def in_own_process(name: str, options: argparse.Namespace) -> tuple[Facts, Callable[[], float]]:
    """Build a contestant on a base model of its own, for a `Worker`.

    What the allocator keeps of a step is given back after it, since the others need memory too; so
    a step that is not timed comes before each.
    """
    base = load_shape(options.model, options.dtype, options.device, options.nf4)
    facts, run = enter(name, base, options, others=0)

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


def enter(
    name: str, base: Any, options: argparse.Namespace, others: int
) -> tuple[Facts, Contestant]:
    """Build a contestant and count; `others` are the bytes on the GPU that others hold."""
    ids = random_ids(base, options.batch, options.length, options.device)
    optimizer: Any = None
    if options.limit_gib is not None and ids.is_cuda:
        from bitsandbytes.optim import PagedAdamW8bit

        optimizer = partial(PagedAdamW8bit, lr=1e-4)
    run = build(name, base, ids, options, optimizer=optimizer)
    return counted(run, others), run


def counted(run: Contestant, others: int) -> Facts:
    """What is the same in every step; the first steps, which warm up, are taken on the way.

    Args:
        run: Whose step.
        others: Bytes on the GPU that others hold.

    Returns:
        `parameters` that are trained; `kept_bytes` that autograd keeps for a token; `ops`,
        the operators (kernels on a GPU) of forward and backward; `peak_bytes` of a step on a GPU,
        as if this contestant were alone, else None.
    """
    cuda = run.ids.is_cuda
    kept = kept_bytes(run) / run.ids.numel()
    run.step()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    run.step()
    return {
        "parameters": run.parameters,
        "kept_bytes": kept,
        "peak_bytes": torch.cuda.max_memory_allocated() - others if cuda else None,
        "ops": (count_kernels if cuda else count_operators)(run.gradients),
    }


def allocated() -> int:
    """Bytes that tensors take on the GPU."""
    gc.collect()
    return torch.cuda.memory_allocated()


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


def count_operators(work: Callable[[], object]) -> int:
    """ATen operators that a function dispatches below autograd; views count, like the rest."""
    with _Counter() as counter:
        work()
    return counter.number


def count_kernels(work: Callable[[], object]) -> int:
    """Kernels that a function launches on a CUDA GPU; copies and fills by the driver are none."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    return sum(
        event.device_type == DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))
        for event in profiler.events()
    )


def kept_bytes(contestant: Contestant) -> int:
    """Bytes that autograd keeps from forward to backward, weights aside; each storage once."""
    model = contestant.model
    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that is kept as it is would keep its own graph alive

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = contestant.loss()
    kept = sum(found.values())
    del loss
    return kept


def in_turn(runs: Mapping[str, Steps], repeats: int) -> dict[str, list[float]]:
    """Seconds of steps that are taken one of each in turn; another one comes first every time."""
    names, times = list(runs), {name: list[float]() for name in runs}
    for repeat in range(repeats):
        turn = repeat % max(len(names), 1)
        for name in names[turn:] + names[:turn]:
            times[name].append(runs[name].step())
    return times


def differences(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Each measurement less the one taken in the same turn."""
    return [a - b for a, b in zip(values, others, strict=True)]


def slope(places: Sequence[float], values: Sequence[float]) -> float:
    """Of the straight line with the least squares."""
    middle, mean = fmean(places), fmean(values)
    across = sum((x - middle) * (y - mean) for x, y in zip(places, values, strict=True))
    return across / sum((x - middle) ** 2 for x in places)


class Worker:
    """A process that makes something and takes its steps.

    It is forked from one that has done nothing but import PEFT and the contestants.

    Args:
        make: A function of a module; see `Maker`.
        *arguments: Its arguments, pickled.

    Attributes:
        facts: What `make` had to say.

    Raises:
        Absent: If `make` does; its other errors, and those of a step, come here too.
        concurrent.futures.process.BrokenProcessPool: If the process is killed, as by a machine
            without memory left.
    """

    def __init__(self, make: Maker, *arguments: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.contestants"])
        self._pool = ProcessPoolExecutor(1, mp_context=context)
        try:
            self.facts = self._pool.submit(_make, make, arguments).result()
        except BaseException:
            self.close()
            raise

    def step(self) -> float:
        """Take a step; seconds."""
        return self._pool.submit(_step).result()

    def close(self) -> None:
        """End the process, and wait until its memory is free."""
        self._pool.shutdown()


_made: dict[str, Callable[[], float]] = {}


def _make(make: Maker, arguments: tuple[Any, ...]) -> Any:
    facts, _made["step"] = make(*arguments)
    return facts


def _step() -> float:
    return _made["step"]()
