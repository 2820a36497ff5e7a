"""Rows of a JSON lines file, tokenised, with labels on what the model is to say."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError

from ..files import parse_json
from ..hosts.constants import IGNORED
from ..samples import Sample, share_out

TASK, ASSISTANT = "task", "assistant"
SEQUENCE_LEN = 2048
"""Tokens that a row is cut to by default."""
_ALL = "data"
_BAD_ROW = (ValueError, TypeError, KeyError, IndexError, AttributeError)

Encoded = tuple[list[int], list[int]]

# The prompt of Axolotl's `alpaca` type, written out here because Axolotl is not imported; a test
# compares it with Axolotl's own tokenisation.
_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)


def read_rows(
    path: Path, tokenizer: Any, count: int, *, seed: int = 0, sequence_len: int = SEQUENCE_LEN
) -> list[Sample]:
    """Draw rows of a file, shared out over its tasks as evenly as can be.

    A row is one JSON object with `messages` (labels on the assistant's last one, by the tokenizer's
    chat template; what follows it is left out), `instruction`, `output` and maybe `input`
    (Axolotl's `alpaca` prompt; labels on the output), `prompt` and `completion`, `text` (labels
    everywhere), or `input_ids` and maybe `labels`. The column `task`, where there is one, names
    the row's task.

    Args:
        path: The file.
        tokenizer: The adapter's tokenizer.
        count: Rows in all.
        seed: Of the drawing.
        sequence_len: Rows are cut to this many tokens; those without a label left are passed over,
            with a warning, and others drawn. So are rows that are there twice, without one.

    Returns:
        The samples, task by task; `inputs` holds `input_ids` and `labels`, int64 [1, T].

    Raises:
        ValueError: If a line is no such row (names file and line), none can be used, or there are
            more tasks than rows are to be drawn.
    """
    rows: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for number, row in _objects(path):
        rows[str(row.get(TASK, _ALL))].append((number, row))
    if len(rows) > count:
        raise ValueError(
            f"{path} has {len(rows)} tasks (column `{TASK}`), more than the {count} rows that are "
            "to be drawn (--samples)."
        )
    random = np.random.default_rng(seed)
    samples, without = [], 0
    for task, share in share_out(count, {task: len(found) for task, found in rows.items()}).items():
        kept: dict[tuple[tuple[int, ...], ...], None] = {}
        for index in random.permutation(len(rows[task])):
            if len(kept) == share:
                break
            number, row = rows[task][index]
            found = _encoded(row, f"{path}, line {number}", tokenizer, sequence_len)
            if any(label != IGNORED for label in found[1][1:]):
                kept[found] = None
            else:
                without += 1
        for one in kept:
            ids, labels = (torch.tensor([numbers]) for numbers in one)
            samples.append(Sample(task, {"input_ids": ids, "labels": labels}))
    where = f"within the first {sequence_len} tokens (--sequence-len)"
    if not samples:
        raise ValueError(f"{path} has no row with a token to predict {where}.")
    if without:
        warnings.warn(
            f"{path}: {without} rows have no token to predict {where}; others were drawn in their "
            "place where there are any.",
            stacklevel=2,
        )
    return samples


def _encoded(
    row: Mapping[str, Any], where: str, tokenizer: Any, sequence_len: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A row's tokens and labels, cut to a length."""
    try:
        ids, labels = _encode(row, tokenizer, sequence_len)
    except (*_BAD_ROW, TemplateError) as error:
        raise ValueError(f"{where}: {error}") from error
    return tuple(ids[:sequence_len]), tuple(labels[:sequence_len])


def _objects(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The lines of a file that are not empty, as objects, with their numbers from 1."""
    try:
        # Not splitlines, which also splits at separators that JSON strings may hold.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
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
    labels = list(row.get("labels") or ids)
    if len(ids) != len(labels):
        raise ValueError(f"{len(ids)} input_ids, but {len(labels)} labels.")
    return ids, labels


def _messages(row: Mapping[str, Any], tokenizer: Any, sequence_len: int) -> Encoded:
    messages: Sequence[Mapping[str, str]] = row["messages"]
    if tokenizer.chat_template is None:
        raise ValueError("the row has messages, but the tokenizer has no chat template.")
    answers = [place for place, one in enumerate(messages) if one["role"] == ASSISTANT]
    if not answers or answers[-1] == 0:
        raise ValueError(f"no message of the role {ASSISTANT!r} follows another one.")
    messages = messages[: answers[-1] + 1]

    def tokens(part: Sequence[Mapping[str, str]], prompt: bool) -> list[int]:
        text = tokenizer.apply_chat_template(part, tokenize=False, add_generation_prompt=prompt)
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    ids, before = tokens(messages, False), tokens(messages[:-1], True)
    # A template may write more into the prompt of an answer than it repeats before the answer.
    same = takewhile(lambda pair: pair[0] == pair[1], zip(ids, before, strict=False))
    start = sum(1 for _ in same)
    return ids, [IGNORED] * start + ids[start:]


def _completion(row: Mapping[str, Any], tokenizer: Any, sequence_len: int) -> Encoded:
    eos = tokenizer.eos_token_id
    prompt, plain = (
        tokenizer(row["prompt"], add_special_tokens=special)["input_ids"]
        for special in (True, False)
    )
    if _ends(prompt, eos) > _ends(plain, eos):  # the tokenizer's, not the row's
        prompt = prompt[:-1]
    answer = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
    if eos is not None and answer[-1:] != [eos]:
        answer = [*answer, eos]
    return [*prompt, *answer], [IGNORED] * len(prompt) + answer


def _ends(ids: Sequence[int], eos: int | None) -> int:
    """How many tokens at the end are the one that ends a text."""
    return sum(1 for _ in takewhile(lambda token: token == eos, reversed(ids)))


def _text(row: Mapping[str, Any], tokenizer: Any, sequence_len: int) -> Encoded:
    ids = tokenizer(row["text"])["input_ids"]
    return ids, list(ids)


def prompt_text(row: Mapping[str, str]) -> str:
    """Return what the model reads before the answer of a row with alpaca keys."""
    template = _WITH_INPUT if row.get("input") else _WITHOUT_INPUT
    return template.format(instruction=row["instruction"], input=row.get("input", ""))


def encode_alpaca(row: Mapping[str, str], tokenizer: Any, sequence_len: int) -> Encoded:
    """Tokenise a row, prompt and answer apart, as Axolotl does with `train_on_inputs: false`.

    Args:
        row: A row with alpaca keys.
        tokenizer: The model's tokenizer.
        sequence_len: Prompt and answer are each cut to this many tokens.

    Returns:
        Token ids and labels; the labels of the prompt are `IGNORED`.
    """
    prompt = tokenizer(prompt_text(row), truncation=True, max_length=sequence_len)["input_ids"]
    answer = tokenizer(row["output"], truncation=True, max_length=sequence_len)["input_ids"]
    if answer[-1:] != [tokenizer.eos_token_id] and len(answer) < sequence_len:
        answer = [*answer, tokenizer.eos_token_id]
    if answer[:1] == [tokenizer.bos_token_id]:
        answer = answer[1:]
    return [*prompt, *answer], [IGNORED] * len(prompt) + list(answer)


_FORMATS: Mapping[tuple[str, ...], Callable[[Mapping[str, Any], Any, int], Encoded]] = {
    ("input_ids",): _tokens,
    ("messages",): _messages,
    ("instruction", "output"): encode_alpaca,
    ("prompt", "completion"): _completion,
    ("text",): _text,
}
