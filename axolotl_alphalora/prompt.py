"""The prompt of Axolotl's `alpaca` dataset type, token for token.

Written out here because the fresh process that evaluates an adapter runs without Axolotl; a test
compares it with Axolotl's own tokenisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .hosts.constants import IGNORED

_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)


def prompt_text(row: Mapping[str, str]) -> str:
    """Return what the model reads before the answer.

    Args:
        row: A row with alpaca keys.
    """
    template = _WITH_INPUT if row.get("input") else _WITHOUT_INPUT
    return template.format(instruction=row["instruction"], input=row.get("input", ""))


def encode(
    row: Mapping[str, str], tokenizer: Any, sequence_len: int
) -> tuple[list[int], list[int]]:
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
