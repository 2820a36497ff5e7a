"""The study's rows: which are trained on, which are held out, and batches of like length."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from axolotl_alphalora.evaluation.samples import Sample, encode_alpaca, share_out
from axolotl_alphalora.hosts.constants import IGNORED
from axolotl_alphalora.quickstart.rows import make_rows

LIMIT = 400
"""Tokens; longer rows are left out, which 1 in 100 are."""

SETS = {"gsm8k": 200, "bbh": 324, "commonsense": 300, "skills": 48}
"""Data set to held-out rows, shared out over its tasks."""

OTHERS = 30
"""Held-out rows of each set that a cell does not train on."""

TEXT = Path(__file__).with_name("text.txt")


@dataclass(frozen=True)
class Row:
    """A tokenised row.

    Attributes:
        task: Its task.
        ids: Token ids.
        labels: The same, `IGNORED` where nothing is to be predicted.
        source: The row as it was read.
    """

    task: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    source: dict[str, str]

    @property
    def tokens(self) -> int:
        """Number of labels that are predicted."""
        return sum(label != IGNORED for label in self.labels[1:])

    def sample(self) -> Sample:
        """The row as sensitivities are measured on."""
        inputs = {"input_ids": torch.tensor([self.ids]), "labels": torch.tensor([self.labels])}
        return Sample(self.task, inputs)


def read(data: str, split: str, directory: Path) -> list[dict[str, str]]:
    """All rows of a split of a data set.

    Args:
        data: Of `SETS`.
        split: train or test.
        directory: Where the files are; the skills are made.

    Raises:
        ValueError: If the file is not there; says how to name its directory.
    """
    if data == "skills":
        return make_rows()[split == "test"]
    path = directory / f"{data}_{split}.jsonl"
    if not path.is_file():
        raise ValueError(
            f"{path} is not there: name the directory of the data with --data or STUDY_DATA"
        )
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


def draw(rows: Sequence[dict[str, str]], count: int, tokenizer: Any) -> list[Row]:
    """Draw and tokenise rows, the tasks taking turns; the same ones every time.

    Raises:
        ValueError: If there are too few.
    """
    by_task: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_task[row["task"]].append(row)
    for task, found in by_task.items():
        Random(task).shuffle(found)
    encoded: dict[str, list[Row]] = {task: [] for task in by_task}
    shares = share_out(count, {task: len(found) for task, found in by_task.items()})
    for task, found in by_task.items():
        for row in found:
            if len(encoded[task]) == shares[task]:
                break
            one = encode(row, tokenizer)
            if len(one.ids) <= LIMIT:
                encoded[task].append(one)
    drawn = [row for found in encoded.values() for row in found]
    if len(drawn) < count:
        raise ValueError(f"{count} rows of at most {LIMIT} tokens are wanted, {len(drawn)} found")
    return drawn


def encode(row: dict[str, str], tokenizer: Any) -> Row:
    """Tokenise a row with alpaca keys; its labels are those of the answer."""
    ids, labels = encode_alpaca(row, tokenizer, 2048)
    return Row(row["task"], tuple(ids), tuple(labels), row)


def text(tokenizer: Any) -> list[Row]:
    """The paragraphs of a fixed English text; every token but the first is a label."""
    rows = []
    for paragraph in TEXT.read_text(encoding="utf-8").strip().split("\n\n"):
        ids = tuple(tokenizer(" ".join(paragraph.split()))["input_ids"])
        rows.append(Row("text", ids, ids, {}))
    return rows


@dataclass(frozen=True)
class Batch:
    """Rows side by side, padded on the right: [rows, length] each.

    Attributes:
        ids: Token ids.
        mask: 1 for tokens, 0 for padding.
        targets: The token that each place is to predict, `IGNORED` where there is none.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], device: str) -> Batch:
        """Pad rows."""
        length = max(len(row.ids) for row in rows)

        def padded(values: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
            filled = [[*value, *[filler] * (length - len(value))] for value in values]
            return torch.tensor(filled, device=device)

        return cls(
            padded([row.ids for row in rows], 0),
            padded([[1] * len(row.ids) for row in rows], 0),
            padded([[*row.labels[1:], IGNORED] for row in rows], IGNORED),
        )


def in_parts(rows: Sequence[Row], tokens: int) -> Iterator[list[Row]]:
    """Cut rows into runs that take at most that many tokens with their padding, at least one row.

    They keep their order, which should be one by length.
    """
    part: list[Row] = []
    for row in rows:
        longest = max(len(one.ids) for one in [*part, row])
        if part and longest * (len(part) + 1) > tokens:
            yield part
            part = []
        part.append(row)
    if part:
        yield part


def steps(rows: Sequence[Row], batch: int, epochs: int, seed: int) -> Iterator[list[Row]]:
    """The rows of every step: shuffled, then rows of like length together, in random order.

    Rows are sorted within groups of eight batches, so that batches differ from epoch to epoch.
    """
    random = Random(seed)
    group = 8 * batch
    for _ in range(epochs):
        order = list(rows)
        random.shuffle(order)
        batches = []
        for start in range(0, len(order), group):
            near = sorted(order[start : start + group], key=lambda row: len(row.ids))
            batches += [near[at : at + batch] for at in range(0, len(near), batch)]
        random.shuffle(batches)
        yield from batches
