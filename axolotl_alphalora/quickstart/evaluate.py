"""Reload a saved adapter with plain PEFT and measure it against its base model.

    python -m axolotl_alphalora.quickstart.evaluate ADAPTER DATA.jsonl SEQUENCE_LEN RESULT.json

Axolotl is not imported: what this reads is what any program can read.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..files import write_whole

ANSWER_TOKENS = 32


def load(adapter: Path) -> tuple[Any, Any]:
    """Load a saved adapter on its base model, in evaluation mode, and the tokenizer."""
    from peft import PeftConfig

    from ..evaluation import load_adapted, load_base, load_tokenizer

    base = PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path or ""
    return load_adapted(load_base(base), adapter), load_tokenizer(adapter, base)


def evaluate(model: Any, tokenizer: Any, data: Path, sequence_len: int) -> dict[str, Any]:
    """Measure a PEFT model with its adapter off and on, on JSON lines with alpaca keys and `task`.

    Returns:
        `rows`, `answer_tokens`, `held_out_loss` (mean per answer token, `before` and `after`),
        `held_out_loss_by_task`, and `example` with the first row's answers.
    """
    from tqdm import tqdm

    from ..evaluation import losses_by_task, read_rows

    lines = [line for line in data.read_text(encoding="utf-8").split("\n") if line.strip()]
    samples = read_rows(data, tokenizer, len(lines), sequence_len=sequence_len)
    first = json.loads(lines[0])
    example = {"instruction": first["instruction"], "input": first.get("input", "")}
    example["expected"] = first["output"]
    losses: dict[str, dict[str, tuple[float, int]]] = {}
    with tqdm(total=2 * len(samples)) as bar:
        for when in ("before", "after"):
            with model.disable_adapter() if when == "before" else nullcontext():
                losses[when] = losses_by_task(model, samples, lambda _: bar.update())
                example[when] = _answer(model, tokenizer, first)
    tokens = sum(count for _, count in losses["after"].values())
    return {
        "rows": len(samples),
        "answer_tokens": tokens,
        "held_out_loss": {
            when: sum(loss for loss, _ in found.values()) / tokens for when, found in losses.items()
        },
        "held_out_loss_by_task": {
            task: {when: found[task][0] / found[task][1] for when, found in losses.items()}
            for task in sorted(losses["after"])
        },
        "example": example,
    }


def _answer(model: Any, tokenizer: Any, row: dict[str, str]) -> str:
    """Answer a row's prompt greedily."""
    import torch

    from ..evaluation import prompt_text

    inputs = tokenizer(prompt_text(row), return_tensors="pt").to(model.device)
    inputs.pop("token_type_ids", None)
    padding = tokenizer.pad_token_id
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id if padding is None else padding,
        )
    answer = output[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(answer, skip_special_tokens=True).strip()


if __name__ == "__main__":
    adapter, data, sequence_len, result = sys.argv[1:]
    try:
        found = evaluate(*load(Path(adapter)), Path(data), int(sequence_len))
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    write_whole(Path(result), json.dumps(found, indent=2, ensure_ascii=False) + "\n")
