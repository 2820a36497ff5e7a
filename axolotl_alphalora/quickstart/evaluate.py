"""Reload a saved adapter with plain PEFT and measure it against its base model.

    python -m axolotl_alphalora.quickstart.evaluate ADAPTER --data FILE --json OUT [--logits OUT2]

Axolotl is not imported: what this reads is what any program can read.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from axolotl_alphalora.hosts.constants import IGNORED
from axolotl_alphalora.prompt import encode, prompt_text
from axolotl_alphalora.quickstart.files import write_json

BATCH_ROWS = 8
ANSWER_TOKENS = 32

Encoded = tuple[list[int], list[int]]


def load(adapter: Path) -> tuple[Any, Any]:
    """Load base model, adapter and tokenizer in float32.

    Args:
        adapter: Directory of the saved adapter and its tokenizer.

    Returns:
        The PEFT model in evaluation mode, and the tokenizer.
    """
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import axolotl_alphalora.adapter  # noqa: F401

    name = PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path
    base = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device), AutoTokenizer.from_pretrained(str(adapter))


def row_losses(model: Any, rows: Sequence[Encoded]) -> Iterator[tuple[int, float, int]]:
    """Yield each row's index, summed answer loss and number of answer tokens, batch by batch.

    Args:
        model: A causal language model.
        rows: Token ids and labels of each row.
    """
    import torch
    from torch.nn.functional import cross_entropy

    order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]))
    for start in range(0, len(order), BATCH_ROWS):
        chosen = order[start : start + BATCH_ROWS]
        longest = len(rows[chosen[-1]][0])
        shape = (len(chosen), longest)
        ids = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORED)
        mask = torch.zeros(shape, dtype=torch.long)
        for line, index in enumerate(chosen):
            length = len(rows[index][0])
            ids[line, :length] = torch.tensor(rows[index][0])
            labels[line, :length] = torch.tensor(rows[index][1])
            mask[line, :length] = 1
        ids, labels, mask = (tensor.to(model.device) for tensor in (ids, labels, mask))
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        answered = labels[:, 1:] != IGNORED
        losses = torch.zeros(answered.shape, device=logits.device)
        # Of the wide logits only the answers' are worth a softmax.
        losses[answered] = cross_entropy(
            logits[answered].float(), labels[:, 1:][answered], reduction="none"
        )
        yield from zip(chosen, losses.sum(1).tolist(), answered.sum(1).tolist(), strict=True)


def generate(model: Any, tokenizer: Any, row: dict[str, str]) -> str:
    """Answer a row's prompt greedily.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        row: A row with alpaca keys.
    """
    import torch

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


def evaluate(model: Any, tokenizer: Any, rows: list[dict[str, str]], sequence_len: int) -> Any:
    """Measure a PEFT model with its adapter off and on.

    Args:
        model: The PEFT model.
        tokenizer: Its tokenizer.
        rows: Held-out rows with alpaca keys and `task`.
        sequence_len: Limit on the tokens of a prompt and of an answer.

    Returns:
        A dictionary: `rows`, `answer_tokens`, `held_out_loss` (mean per answer token, `before` and
        `after`), `held_out_loss_by_task`, and `example` with the first row's answers.
    """
    from tqdm import tqdm

    encoded = [encode(row, tokenizer, sequence_len) for row in rows]
    result: dict[str, Any] = {"rows": len(rows), "held_out_loss": {}, "held_out_loss_by_task": {}}
    answers: dict[str, str] = {}
    bar = tqdm(total=2 * len(rows))
    for when in ("before", "after"):
        sums: defaultdict[str, float] = defaultdict(float)
        tokens: defaultdict[str, int] = defaultdict(int)
        with model.disable_adapter() if when == "before" else nullcontext():
            for index, loss, count in row_losses(model, encoded):
                sums[rows[index].get("task", "all")] += loss
                tokens[rows[index].get("task", "all")] += count
                bar.update()
            answers[when] = generate(model, tokenizer, rows[0])
        result["answer_tokens"] = sum(tokens.values())
        result["held_out_loss"][when] = sum(sums.values()) / sum(tokens.values())
        for task in sorted(sums):
            by_task = result["held_out_loss_by_task"].setdefault(task, {})
            by_task[when] = sums[task] / tokens[task]
    bar.close()
    first = {key: rows[0].get(key, "") for key in ("instruction", "input")}
    return result | {"example": first | {"expected": rows[0]["output"]} | answers}


def save_logits(model: Any, rows: Sequence[Encoded], path: Path) -> None:
    """Save the adapted model's logits on the first row, with the row's token ids.

    Args:
        model: The model.
        rows: Token ids and labels of each row.
        path: The safetensors file to write.
    """
    import torch
    from safetensors.torch import save_file

    ids = torch.tensor([rows[0][0]], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    save_file({"input_ids": ids.cpu(), "logits": logits.float().cpu().contiguous()}, path)


@click.command()
@click.argument("adapter", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
@click.option("--logits", "logits_path", type=click.Path(path_type=Path))
@click.option("--sequence-len", default=2048, show_default=True)
def main(
    adapter: Path, data: Path, json_path: Path, logits_path: Path | None, sequence_len: int
) -> None:
    """Measure the held-out loss of ADAPTER and of its base model."""
    lines = data.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    if not rows:
        raise click.ClickException(f"{data} has no rows; delete it to have it written anew.")
    model, tokenizer = load(adapter)
    write_json(json_path, evaluate(model, tokenizer, rows, sequence_len))
    if logits_path:
        save_logits(model, [encode(rows[0], tokenizer, sequence_len)], logits_path)


if __name__ == "__main__":
    main()
