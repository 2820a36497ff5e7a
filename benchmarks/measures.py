"""What is counted of a training step, and how steps that were taken in turn are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from axolotl_alphalora.adapter.fused import using

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .contestants import Contestant

__all__ = [
    "Steps",
    "count_kernels",
    "count_operators",
    "differences",
    "graph_breaks",
    "in_turn",
    "kept_bytes",
    "ratios",
    "slope",
]


class Steps(Protocol):
    """What takes steps that are timed."""

    def step(self) -> float:
        """Take one; seconds."""
        ...


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
    weights = {p.untyped_storage().data_ptr() for p in contestant.model.parameters()}
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


def graph_breaks(contestant: Contestant) -> int:
    """Breaks in the graph that torch.compile makes of one forward, in eager mode."""

    def forward(model: Any, ids: Tensor) -> Tensor:
        return model(input_ids=ids, labels=ids, use_cache=False).loss

    with _dynamo_as_it_was(), using(**contestant.switches), contestant.autocast():
        return torch._dynamo.explain(forward)(contestant.model, contestant.ids).graph_break_count


@contextmanager
def _dynamo_as_it_was() -> Iterator[None]:
    """Let every layer be compiled anew; restore what dynamo counts and how often it may."""
    counters = torch._dynamo.utils.counters
    before = {key: value.copy() for key, value in counters.items()}
    try:
        with torch._dynamo.config.patch(recompile_limit=2**16, accumulated_recompile_limit=2**16):
            yield
    finally:
        torch._dynamo.reset()
        counters.clear()
        counters.update(before)


def in_turn(runs: Mapping[str, Steps], repeats: int) -> dict[str, list[float]]:
    """Seconds of steps that are taken one of each in turn; another one comes first every time."""
    names, times = list(runs), {name: list[float]() for name in runs}
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(runs[name].step())
    return times


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Each measurement over the one taken in the same turn."""
    return [a / b for a, b in zip(values, others, strict=True)]


def differences(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Each measurement less the one taken in the same turn."""
    return [a - b for a, b in zip(values, others, strict=True)]


def slope(places: Sequence[float], values: Sequence[float]) -> float:
    """Of the straight line with the least squares."""
    middle, mean = fmean(places), fmean(values)
    across = sum((x - middle) * (y - mean) for x, y in zip(places, values, strict=True))
    return across / sum((x - middle) ** 2 for x in places)
