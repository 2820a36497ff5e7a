"""A tiny world for the study's bench: a random base model and rows of made-up sums."""

import json
from pathlib import Path
from random import Random

from transformers import AutoModelForCausalLM

from benchmarks.study.methods import Bench
from benchmarks.study.rows import Row, draw
from helpers.models import byte_tokenizer, save_tiny_model


def sums(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows with alpaca keys, of two tasks."""
    random = Random(seed)
    rows = []
    for number in range(count):
        a, b = random.randrange(100), random.randrange(100)
        task, total = ("add", a + b) if number % 2 else ("subtract", a - b)
        question = f"What is {a} {'+' if task == 'add' else '-'} {b}?" + " Please." * (number % 4)
        answer = f"It is {total}." + " Yes." * (number % 3)
        row = {"instruction": question, "input": "", "output": answer, "answer": str(total)}
        rows.append({**row, "task": task})
    return rows


def save_base(folder: Path) -> str:
    """A tiny Llama whose tokenizer knows the prompts' words."""
    texts = [json.dumps(row) for row in sums(50)]
    prompt = "Below is an instruction that describes a task. Write a response that appropriately "
    texts += 20 * [prompt + "completes the request.\n\n### Instruction:\n\n\n### Response:\n"]
    save_tiny_model(folder, byte_tokenizer(texts, vocab_size=500))
    return str(folder)


def bench(folder: str, tokenizer, count: int = 12, seed: int = 0) -> Bench:
    """What methods are built on; the base is loaded anew."""
    model = AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False)
    return Bench(model, folder, draw(sums(count), count, tokenizer), seed)


__all__ = ["Row", "bench", "save_base", "sums"]
