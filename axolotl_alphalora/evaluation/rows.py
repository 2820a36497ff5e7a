"""Rows of a JSON lines file, tokenised, with labels on what the model is to say."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..quickstart.prompt import IGNORED, encode
from ..sensitivity.samples import Sample, share_out

__all__ = ["read_rows"]

TASK = "task"
_ALL = "data"

Encoded = tuple[list[int], list[int]]


def read_rows(
    path: Path, tokenizer: Any, count: int, *, seed: int = 0, sequence_len: int = 2048
) -> list[Sample]:
    """Draw rows of a file, shared out over its tasks as evenly as can be.

    A row is one JSON object with `messages` (labels on the last one, by the tokenizer's chat
    template), `instruction`, `output` and maybe `input` (Axolotl's `alpaca` prompt; labels on the
    output), `prompt` and `completion`, `text` (labels everywhere), or `input_ids` and maybe
    `labels`. The column `task`, where there is one, names the row's task.

    Args:
        path: The file.
        tokenizer: The adapter's tokenizer.
        count: Rows in all.
        seed: Of the drawing.
        sequence_len: Rows are cut to this many tokens; those without a label left are passed over.

    Returns:
        The samples, task by task; `inputs` holds `input_ids` and `labels`, int64 [1, T].

    Raises:
        ValueError: If a line is no such row (names file and line), or none can be used.
    """
    rows: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for number, row in _objects(path):
        rows[str(row.get(TASK, _ALL))].append((number, row))
    random = np.random.default_rng(seed)
    samples = []
    for task, share in share_out(count, {task: len(found) for task, found in rows.items()}).items():
        for index in random.permutation(len(rows[task]))[:share]:
            number, row = rows[task][index]
            try:
                ids, labels = _encode(row, tokenizer, sequence_len)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            ids, labels = ids[:sequence_len], labels[:sequence_len]
            if any(label != IGNORED for label in labels[1:]):
                inputs = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}
                samples.append(Sample(task, inputs))
    if not samples:
        raise ValueError(f"{path} has no row with a token to predict.")
    return samples


def _objects(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The lines of a file that are not empty, as objects, with their numbers from 1."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is no JSON object.")
        found.append((number, row))
    return found


def _encode(row: Mapping[str, Any], tokenizer: Any, sequence_len: int) -> Encoded:
    for columns, encoder in _FORMATS.items():
        if all(column in row for column in columns):
            return encoder(row, tokenizer, sequence_len)
    known = "; ".join(", ".join(columns) for columns in _FORMATS)
    raise ValueError(f"the row has {', '.join(row)}, but one of these is needed: {known}.")


def _tokens(row: Mapping[str, Any], tokenizer: Any, sequence_len: int) -> Encoded:
    ids = list(row["input_ids"])
    return ids, list(row.get("labels", ids))


def _messages(row: Mapping[str, Any], tokenizer: Any, sequence_len: int) -> Encoded:
    messages: Sequence[Mapping[str, str]] = row["messages"]
    if tokenizer.chat_template is None:
        raise ValueError("the row has messages, but the tokenizer has no chat template.")

    def text(part: Sequence[Mapping[str, str]], prompt: bool) -> str:
        return tokenizer.apply_chat_template(part, tokenize=False, add_generation_prompt=prompt)

    return _answered(tokenizer, text(messages[:-1], True), text(messages, False), False)


def _completion(row: Mapping[str, Any], tokenizer: Any, sequence_len: int) -> Encoded:
    end = tokenizer.eos_token or ""
    return _answered(tokenizer, row["prompt"], f"{row['prompt']}{row['completion']}{end}", True)


def _answered(tokenizer: Any, prompt: str, whole: str, special: bool) -> Encoded:
    """Tokenise a text; what its prompt covers gets no labels."""
    before = tokenizer(prompt, add_special_tokens=special)["input_ids"]
    ids = tokenizer(whole, add_special_tokens=special)["input_ids"]
    return ids, [IGNORED] * len(before) + ids[len(before) :]


def _text(row: Mapping[str, Any], tokenizer: Any, sequence_len: int) -> Encoded:
    ids = tokenizer(row["text"])["input_ids"]
    return ids, list(ids)


_FORMATS: Mapping[tuple[str, ...], Callable[[Mapping[str, Any], Any, int], Encoded]] = {
    ("input_ids",): _tokens,
    ("messages",): _messages,
    ("instruction", "output"): encode,
    ("prompt", "completion"): _completion,
    ("text",): _text,
}
