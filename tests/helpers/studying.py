"""A tiny world for the study's bench: a random base model and rows of made-up sums."""

import json
from functools import partial
from pathlib import Path
from random import Random

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks.study import bases, cells, rows
from benchmarks.study import methods as methods_module
from benchmarks.study.__main__ import main as study
from benchmarks.study.methods import METHODS, Bench, Built, why_not
from benchmarks.study.rows import draw
from helpers.models import byte_tokenizer, tiny_llama


def sums(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows with alpaca keys, of two tasks."""
    random = Random(seed)
    made = []
    for number in range(count):
        a, b = random.randrange(100), random.randrange(100)
        task, total = ("add", a + b) if number % 2 else ("subtract", a - b)
        question = f"What is {a} {'+' if task == 'add' else '-'} {b}?" + " Please." * (number % 4)
        answer = f"It is {total}." + " Yes." * (number % 3)
        row = {"instruction": question, "input": "", "output": answer, "answer": str(total)}
        made.append({**row, "task": task})
    return made


def save_base(folder: Path) -> str:
    """A tiny Llama of four blocks whose tokenizer knows the prompts' words."""
    texts = [json.dumps(row) for row in sums(50)]
    prompt = "Below is an instruction that describes a task. Write a response that appropriately "
    texts += 20 * [prompt + "completes the request.\n\n### Instruction:\n\n\n### Response:\n"]
    tokenizer = byte_tokenizer(texts, vocab_size=500)
    config = {"num_hidden_layers": 4, "max_position_embeddings": 512}
    model = tiny_llama(vocab_size=len(tokenizer), **config)
    for place, block in enumerate(model.model.layers):  # so that no block's spectrum is another's
        for module in block.modules():
            if isinstance(module, nn.Linear):
                module.weight.data *= torch.linspace(1, 0.01, module.in_features) ** place
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_data(folder: Path) -> None:
    """Sums in the place of gsm8k."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, seed in (("train", 0), ("test", 1)):
        text = "".join(json.dumps(row) + "\n" for row in sums(40, seed))
        (folder / f"gsm8k_{split}.jsonl").write_text(text)
    (folder / "text.txt").write_text("A river leaves the hills.\n\nBread needs flour.")


def bench(folder: str, tokenizer, count: int = 12, seed: int = 0) -> Bench:
    """What methods are built on; the base is loaded anew."""
    model = AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False)
    return Bench(model, folder, draw(sums(count), count, tokenizer), seed)


def _broken(_: Bench) -> Built:
    raise RuntimeError("it breaks")


def run(folder: Path, *arguments: str, methods: tuple[str, ...] = ("lora-r8", "uniform")) -> None:
    """The study's command on a tiny table: a curve of one rate, one set of data.

    Changes the study's modules, so call it in a process of its own.
    """
    bases.BASES["smollm2"] = lambda: f"{folder}/base"
    rows.SETS.clear()
    rows.SETS["gsm8k"] = 8
    rows.TEXT = folder / "data" / "text.txt"
    cells.GRID, cells.BEYOND, cells.SEEDS, cells.FRESH = (1e-3,), 0, range(2), ()
    METHODS["broken"] = _broken
    known = why_not
    methods_module.why_not = lambda method: (
        "it is not installed" if method == "absent" else known(method)
    )
    cells.PILOT, cells.VARIANCE_OF = methods, methods[-1]
    for name, group in list(vars(cells).items()):
        if group in (*cells.GROUPS, cells.SHORT):
            setattr(cells, name, ())
    cells.Setting = partial(cells.Setting, rows=16)
    study([*arguments, "--results", f"{folder}/results.jsonl", "--cells", "*/smollm2/gsm8k/16/*"])
