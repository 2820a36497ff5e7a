"""How many held-out rows are answered right: by the likelihood of options, or in the model's words.

Options are what the training rows of a task answer. Where a question lists its own, as (A) or
answer1, only those that it lists are asked.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from axolotl_alphalora.evaluation.samples import prompt_text

from .devices import autocast
from .measure import row_losses
from .rows import Row, encode

DEFAULT = {"cpu": {"gsm8k": 0}, "cuda": {}}
"""Device to rows that are answered, where that is not `ROWS`."""
ROWS = {"cpu": 100, "cuda": 200}
MOST_OPTIONS = 12
NEW_TOKENS = 200
BATCH = 50

_Z = 1.959964
_LISTED = re.compile(r"\([A-Z]\)|[a-z]+\d")
_NUMBER = re.compile(r"####\s*(-?[\d,.]*\d)")
UNASKED = "not asked for: --answers N has N rows answered"


def answered(
    model: Any,
    tokenizer: Any,
    data: str,
    held_out: Sequence[Row],
    training: Sequence[dict[str, str]],
    device: str,
    count: int | None = None,
) -> dict[str, Any]:
    """Answer held-out rows.

    Args:
        model: The trained model.
        tokenizer: Its tokenizer.
        data: The data set; gsm8k is answered in words, the others by their options.
        held_out: The rows, evenly picked from.
        training: All training rows, raw.
        device: Where.
        count: Rows; None is the default of the device.

    Returns:
        `rows`, `right`, the 95 % `interval` and `by`; or 0 rows, and `why`.
    """
    if count is None:
        count = DEFAULT[device].get(data, ROWS[device])
    if not count:
        return {"rows": 0, "why": UNASKED}
    if data == "gsm8k":
        rows = held_out[:count]
        right, how = _in_words(model, tokenizer, rows, device), "greedy answers"
    else:
        options = _options(training)
        rows = [row for row in held_out if row.task in options]
        rows = rows[:: max(1, len(rows) // count)][:count]
        if not rows:
            return {"rows": 0, "why": f"no task has at most {MOST_OPTIONS} answers"}
        right, how = _by_options(model, tokenizer, rows, options, device), "likelihood"
    low, high = wilson(right, len(rows))
    interval = [round(low, 4), round(high, 4)]
    return {"rows": len(rows), "right": right, "interval": interval, "by": how}


def wilson(right: int, rows: int) -> tuple[float, float]:
    """The 95 % interval of a share of rows (Wilson's score interval)."""
    share, square = right / rows, _Z * _Z / rows
    middle = (share + square / 2) / (1 + square)
    half = _Z * math.sqrt(share * (1 - share) / rows + square / (4 * rows)) / (1 + square)
    return middle - half, middle + half


def _options(training: Sequence[dict[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Task to its answers, as (answer, output); tasks with many are left out."""
    found: dict[str, dict[tuple[str, str], None]] = defaultdict(dict)
    for row in training:
        found[row["task"]][row.get("answer", row["output"]), row["output"]] = None
    return {task: sorted(of) for task, of in found.items() if 1 < len(of) <= MOST_OPTIONS}


def asked(row: dict[str, str], options: Sequence[tuple[str, str]]) -> list[str]:
    """The outputs that a row chooses among."""
    question = f"{row['instruction']} {row.get('input', '')}"
    return [
        output
        for answer, output in options
        if output == row["output"] or not _LISTED.fullmatch(answer) or answer in question
    ]


def _by_options(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    options: dict[str, list[tuple[str, str]]],
    device: str,
) -> int:
    """Rows whose own output is the likeliest of their options."""
    choices = [asked(row.source, options[row.task]) for row in rows]
    flat = [
        encode({**row.source, "output": output}, tokenizer)
        for row, outputs in zip(rows, choices, strict=True)
        for output in outputs
    ]
    losses = iter(row_losses(model, flat, device))
    right = 0
    for row, outputs in zip(rows, choices, strict=True):
        found = {output: next(losses) for output in outputs}
        right += min(found, key=found.__getitem__) == row.source["output"]
    return right


@torch.inference_mode()
def _in_words(model: Any, tokenizer: Any, rows: Sequence[Row], device: str) -> int:
    """Rows whose number after #### is right, in the model's greedy answer."""
    model.eval()
    right = 0
    order = sorted(rows, key=lambda row: len(row.ids))
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        prompts = [tokenizer(prompt_text(row.source))["input_ids"] for row in part]
        width = max(map(len, prompts))
        filler = tokenizer.eos_token_id
        ids = torch.tensor([[filler] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        with autocast(device):
            said = model.generate(
                input_ids=ids,
                attention_mask=mask.to(device),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=filler,
            )
        texts = tokenizer.batch_decode(said[:, width:], skip_special_tokens=True)
        right += sum(
            number(text) == number(f"#### {row.source['answer']}")
            for text, row in zip(texts, part, strict=True)
        )
    return right


def number(text: str) -> float | None:
    """The number that an answer ends with; None if it gives none."""
    found = _NUMBER.search(text)
    return float(found[1].replace(",", "")) if found else None
