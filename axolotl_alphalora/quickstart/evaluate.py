"""Reload a saved adapter with plain PEFT, measure it against its base model, and write its probe.

    python -m axolotl_alphalora.quickstart.evaluate ADAPTER DATA.jsonl SEQUENCE_LEN BITS RESULT.json

Axolotl is not imported: what this reads is what any program can read.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import PROBE, write_whole

if TYPE_CHECKING:
    from ..samples import Sample

ANSWER_TOKENS = 32


def load(adapter: Path, bits: int = 0) -> tuple[Any, Any]:
    """Load a saved adapter on its base model, in evaluation mode, and the tokenizer.

    Args:
        adapter: The adapter's directory.
        bits: What the base is quantised to, as in the run: 4 (nf4), 8 (int8) or 0.
    """
    from peft import PeftConfig

    from ..evaluation import load_adapted, load_base, load_tokenizer

    config = PeftConfig.from_pretrained(str(adapter))
    name = config.base_model_name_or_path or ""
    base = load_base(name, revision=config.revision, load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    return load_adapted(base, adapter), load_tokenizer(adapter, name)


def evaluate(model: Any, tokenizer: Any, data: Path, sequence_len: int) -> dict[str, Any]:
    """Measure a PEFT model with its adapter off and on, on JSON lines with alpaca keys and `task`.

    Returns:
        `rows`, `answer_tokens`, `held_out_loss` (mean per answer token, `before` and `after`),
        `held_out_loss_by_task`, and `example` with the first row's answers.
    """
    from tqdm import tqdm

    from ..evaluation import losses_by_task

    samples = _samples(data, tokenizer, sequence_len)
    first = json.loads(_lines(data)[0])
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


def ask(model: Any, tokenizer: Any, data: Path, sequence_len: int) -> str:
    """Ask a PEFT model what some of the rows ask.

    Returns:
        The content of `probe.json`.
    """
    from tqdm import tqdm

    from ..probe import make_probe, prompts_of

    prompts = prompts_of(_samples(data, tokenizer, sequence_len), tokenizer)
    base = model.peft_config["default"].base_model_name_or_path
    with tqdm(total=len(prompts)) as bar:
        made = make_probe(
            model,
            tokenizer,
            prompts,
            base_model=base,
            method="alphalora",
            step=lambda _: bar.update(),
        )
    return made.to_json()


def _lines(data: Path) -> list[str]:
    return [line for line in data.read_text(encoding="utf-8").split("\n") if line.strip()]


def _samples(data: Path, tokenizer: Any, sequence_len: int) -> list[Sample]:
    from ..evaluation import read_rows

    return read_rows(data, tokenizer, len(_lines(data)), sequence_len=sequence_len)


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
    adapter, data, sequence_len, bits, result = sys.argv[1:]
    try:
        model, tokenizer = load(Path(adapter), int(bits))
        rows = Path(data), int(sequence_len)
        found = evaluate(model, tokenizer, *rows)
        write_whole(Path(adapter) / PROBE, ask(model, tokenizer, *rows))
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    write_whole(Path(result), json.dumps(found, indent=2, ensure_ascii=False) + "\n")
