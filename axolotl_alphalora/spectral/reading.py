"""Spectra of many matrices: read, computed and kept, each once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from ..threads import same_threads_after
from .cache import Cache, combined_digest
from .live import WeightSource
from .spectrum import spectra, stacked_spectra

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_KIND = "spectra-1"
_ONE_THREAD_UP_TO = 1024
_READERS = 4
_STACK_ELEMENTS = 1 << 27


@dataclass(frozen=True)
class Spectra:
    """The spectra of a model's matrices.

    Attributes:
        values: Module name to squared singular values, ascending, float64 on the CPU, one row for
            each window, shape (W, n).
        shapes: Module name to the shape of its weight as it is stored.
        fingerprints: Module name to what identifies its weight.
        window: Rows and columns of the windows, None where each matrix was taken whole.
    """

    window: tuple[int, int] | None
    values: dict[str, Tensor]
    shapes: dict[str, tuple[int, int]]
    fingerprints: dict[str, str]

    @property
    def digest(self) -> str:
        """One digest of all weights."""
        return combined_digest(self.fingerprints)


@dataclass(frozen=True)
class _Job:
    weights: WeightSource
    window: tuple[int, int] | None
    cache: Cache
    device: torch.device


def read_spectra(
    weights: WeightSource,
    shapes: Mapping[str, tuple[int, int]],
    window: tuple[int, int] | None = None,
    *,
    cache: Cache | None = None,
    device: str | torch.device | None = None,
    progress: Callable[[str], None] | None = None,
) -> Spectra:
    """Compute the spectra of weight matrices, or take them from the cache.

    On the CPU, matrices up to 1024 on their shorter side are computed side by side, each on one
    thread: on small matrices threads cost more in waiting for each other than they win. Larger
    ones come one after another on all threads. On a CUDA device, matrices of equal shape are
    computed together. Either way the next ones are read meanwhile, so that at most the few in
    hand are in memory.

    Args:
        weights: Where the weights come from.
        shapes: The modules to read, with the features of their layers.
        window: Rows and columns of the windows, see
            `window_grid`.
        cache: Where spectra are kept; None keeps none.
        device: Where to compute; CUDA where there is one if None. Live weights are computed
            where they are.
        progress: Called with a module's name when its spectrum is there.

    Returns:
        The spectra, in the order of `shapes`.

    Raises:
        ValueError: If a weight cannot be read, is no matrix, or holds NaN or infinity. The message
            names the tensor and its file.
    """
    on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    job = _Job(weights, window, cache or Cache(None), on)
    rows: dict[str, _Row] = {}
    for name in shapes:
        known = _recall(job, name)
        if known is not None:
            rows[name] = known
            if progress is not None:
                progress(name)
    compute = _compute_batches if on.type == "cuda" else _compute_on_cpu
    for row in compute(job, [name for name in shapes if name not in rows], shapes):
        rows[row.name] = row
        if progress is not None:
            progress(row.name)
    return Spectra(
        window,
        values={name: rows[name].values for name in shapes},
        shapes={name: rows[name].shape for name in shapes},
        fingerprints={name: rows[name].fingerprint for name in shapes},
    )


@dataclass(frozen=True)
class _Row:
    name: str
    fingerprint: str
    shape: tuple[int, int]
    values: Tensor


def _compute_on_cpu(
    job: _Job, names: Sequence[str], shapes: Mapping[str, tuple[int, int]]
) -> Iterator[_Row]:
    small = [name for name in names if min(shapes[name]) <= _ONE_THREAD_UP_TO]
    large = [name for name in names if min(shapes[name]) > _ONE_THREAD_UP_TO]
    workers = max(1, torch.get_num_threads())
    with same_threads_after(), ThreadPoolExecutor(workers, "", torch.set_num_threads, (1,)) as pool:
        yield from _ahead(pool, lambda name: _computed(job, *_read(job, name)), small, 2 * workers)
    with ThreadPoolExecutor(1) as reader:
        for name, weight in _ahead(reader, lambda name: _read(job, name), large, 1):
            yield _computed(job, name, weight)


def _compute_batches(
    job: _Job, names: Sequence[str], shapes: Mapping[str, tuple[int, int]]
) -> Iterator[_Row]:
    by_shape = sorted(names, key=lambda name: shapes[name])
    with ThreadPoolExecutor(_READERS) as reader:
        read = _ahead(reader, lambda name: _read(job, name), by_shape, 2 * _READERS)
        for shape, group in groupby(read, key=lambda item: tuple(item[1].shape)):
            if job.window is not None or len(shape) != 2:
                for name, weight in group:
                    yield _computed(job, name, weight)
                continue
            together = max(1, _STACK_ELEMENTS // (shape[0] * shape[1]))
            batch: list[tuple[str, str, Tensor]] = []
            for name, weight in group:
                identity = job.weights.identify(name, weight)
                known = _recall(job, name, identity)
                if known is not None:
                    yield known
                    continue
                batch.append((name, identity, weight))
                if len(batch) == together:
                    yield from _computed_together(job, batch)
                    batch = []
            if batch:
                yield from _computed_together(job, batch)


def _read(job: _Job, name: str) -> tuple[str, Tensor]:
    return name, job.weights.tensor(name)


def _computed(job: _Job, name: str, weight: Tensor) -> _Row:
    identity = job.weights.identify(name, weight)
    known = _recall(job, name, identity)
    return known if known is not None else _computed_alone(job, name, identity, weight)


def _computed_alone(job: _Job, name: str, identity: str, weight: Tensor) -> _Row:
    moved = weight.to(job.device) if job.device.type == "cuda" else weight
    with _naming(job, name):
        values = spectra(moved, job.window).cpu()
    return _keep(job, name, identity, weight, values)


def _computed_together(job: _Job, batch: Sequence[tuple[str, str, Tensor]]) -> Iterator[_Row]:
    if len(batch) == 1:  # a large one, which is better taken in slices
        yield _computed_alone(job, *batch[0])
        return
    stack = torch.stack([weight.to(job.device) for _, _, weight in batch])
    try:
        all_values = stacked_spectra(stack).cpu()
    except ValueError:  # one by one, so that the message names the bad one
        for item in batch:
            yield _computed_alone(job, *item)
        return
    for (name, identity, weight), values in zip(batch, all_values, strict=True):
        yield _keep(job, name, identity, weight, values[None])


def _keep(job: _Job, name: str, identity: str, weight: Tensor, values: Tensor) -> _Row:
    shape = (weight.shape[0], weight.shape[1])
    kept = {"values": values, "shape": torch.tensor(shape)}
    job.cache.put_tensors(_KIND, _key(identity, job.window), kept)
    return _Row(name, identity, shape, values)


def _recall(job: _Job, name: str, identity: str | None = None) -> _Row | None:
    """Return what the cache has of a weight, None if nothing or if only reading can tell."""
    identity = identity or job.weights.fingerprint(name)
    known = job.cache.get_tensors(_KIND, _key(identity, job.window)) if identity else None
    if identity is None or known is None:
        return None
    rows, columns = known["shape"].tolist()
    return _Row(name, identity, (rows, columns), known["values"])


def _key(identity: str, window: tuple[int, int] | None) -> str:
    return f"{identity} {'whole' if window is None else f'{window[0]}x{window[1]}'}"


@contextmanager
def _naming(job: _Job, name: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, torch.linalg.LinAlgError) as error:
        raise ValueError(f"{job.weights.location(name)}: {error}") from error


def _ahead(
    pool: ThreadPoolExecutor,
    work: Callable[[_Item], _Result],
    items: Sequence[_Item],
    ahead: int,
) -> Iterator[_Result]:
    """Yield results in order, with a bounded number of items under way beyond the one in hand."""
    waiting: list[Future[_Result]] = []
    queue = iter(items)
    try:
        for item in queue:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        for future in waiting:
            future.cancel()
