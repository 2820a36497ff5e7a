"""Single sequences, taken out of the padded or packed rows that a run trains on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..hosts.constants import IGNORED


@dataclass(frozen=True, eq=False)
class Sample:
    """One sequence as the model takes it.

    Attributes:
        task: The task that the sequence counts for.
        inputs: The model's arguments, ``[1, T]`` tensors on the CPU: ``input_ids``, ``labels`` and
            whatever else the batch held for each token.
    """

    task: str
    inputs: Mapping[str, Tensor]


def split_batch(batch: Mapping[str, Tensor], task: str = "data") -> list[Sample]:
    """Take a batch apart into its single sequences, in order.

    Padding (0 in ``attention_mask``, on either side) is trimmed. A packed row is cut where
    ``position_ids`` do not increase, or where ``attention_mask`` numbers the sequences as
    Axolotl's multipack does (``1, 1, 2, 2, 3, ...``); the mask of every sample is all ones. A
    sequence of which no label is predicted (all -100 after the first token) is left out: it has
    no loss. The first token of a packed sequence is not predicted, alone or here.

    Args:
        batch: ``[B, T]`` tensors on any device; ``labels`` is required, ``attention_mask`` and
            ``position_ids`` are used where they are there.
        task: The task of every sample.

    Returns:
        A sample for each sequence that has a loss, holding copies.

    Raises:
        ValueError: A tensor is not ``[B, T]``, ``labels`` are missing, or a row has padding in
            the middle of a sequence.
    """
    if "labels" not in batch:
        raise ValueError(
            f"The batch has no `labels`, only {', '.join(batch)}: without them there is no loss. "
            "Take the batch from the training data's collator."
        )
    shape = list(batch["labels"].shape)
    for key, value in batch.items():
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if found != shape or len(shape) != 2:
            raise ValueError(
                f"`{key}` of the batch is {found}, and `labels` are {shape}: only [batch, tokens] "
                "tensors of one shape can be taken apart into sequences."
            )
    samples = []
    for row in range(shape[0]):
        cells = {key: value[row].detach().cpu() for key, value in batch.items()}
        for start, stop in _sequences(cells, row):
            if bool((cells["labels"][start + 1 : stop] == IGNORED).all()):
                continue
            inputs = {key: value[start:stop].clone()[None] for key, value in cells.items()}
            if "attention_mask" in inputs:
                inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
            samples.append(Sample(task, inputs))
    return samples


def share_out(count: int, available: Mapping[str, float]) -> dict[str, int]:
    """Share a number out among tasks as evenly as what they have allows.

    Args:
        count: What to share out.
        available: The most that each task can take; may be infinite.

    Returns:
        Task to its share, in the order given; earlier tasks get what is left over. The shares of
        two tasks differ by more than one only if the smaller is all that its task can take, and
        they add up to `count` if the tasks can take as much.
    """
    shares = dict.fromkeys(available, 0)
    while takers := [task for task in shares if shares[task] < available[task]]:
        takers = takers[: count - sum(shares.values())]
        if not takers:
            break
        for task in takers:
            shares[task] += 1
    return shares


def _sequences(cells: Mapping[str, Tensor], row: int) -> Iterator[tuple[int, int]]:
    """First and last + 1 index of every sequence of a row of [T] tensors, padding left out."""
    ids = cells.get("attention_mask", torch.ones_like(cells["labels"])).tolist()
    steps = cells.get("position_ids", torch.arange(len(ids))).tolist()
    tokens = [token for token, number in enumerate(ids) if number]
    start = tokens[:1]
    for last, token in pairwise(tokens):
        follows = ids[last] == ids[token] and steps[last] < steps[token]
        if follows and last + 1 < token:
            raise ValueError(
                f"Row {row} of the batch has padding inside a sequence (`attention_mask` is 0 from "
                f"token {last + 1} to {token - 1}). Pad at one side."
            )
        if not follows:
            yield start[0], last + 1
            start = [token]
    if start:
        yield start[0], tokens[-1] + 1
