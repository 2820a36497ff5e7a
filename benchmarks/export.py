"""How good exports of a trained adapter are, method by method.

    python -m benchmarks.export ADAPTER_DIR --data train.jsonl --eval-data held_out.jsonl --verify

One table: rank, KL divergence per token from the routed adapter, loss. ``--verify`` also writes the
default export, opens it by plain PEFT on a fresh base, and computes its divergence once more by a
separate sum in fp64. Needs no Axolotl.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel

from axolotl_alphalora.evaluation import (
    calibrate,
    load_adapted,
    load_base,
    load_tokenizer,
    measure_price,
    read_rows,
)
from axolotl_alphalora.export import METHODS, build, export_adapter
from axolotl_alphalora.export.lora import attach
from axolotl_alphalora.inspection import read_config
from axolotl_alphalora.sensitivity import Sample

from .common import machine


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--eval-data", type=Path, required=True)
    parser.add_argument("--samples", type=int, nargs="+", default=[128])
    parser.add_argument("--ranks", type=int, nargs="*", default=[16, 8])
    parser.add_argument("--verify", action="store_true")
    wanted = parser.parse_args()
    print(machine(("torch", "transformers", "peft")))
    name = read_config(wanted.adapter).base_model
    assert name is not None
    tokenizer = load_tokenizer(wanted.adapter, name)
    model = load_adapted(load_base(name), wanted.adapter)
    held_out = read_rows(wanted.eval_data, tokenizer, max(wanted.samples))
    print("| rows | method | rank | KL per token | loss of the export |")
    print("| --- " * 5 + "|")
    for count in wanted.samples:
        rows = read_rows(wanted.data, tokenizer, count)
        moments = calibrate(model, rows)
        for method in METHODS:
            for rank in (None, *wanted.ranks):
                attach(model, build(model, moments, method=method, rank=rank))
                price = measure_price(model, held_out)
                model.delete_adapter("export")
                print(
                    f"| {len(rows)} | {method} | {rank or 'experts x r'} | {price.kl:.4f} "
                    f"| {price.loss_export:.4f} |",
                    flush=True,
                )
    print(f"base {price.loss_base:.4f}, routed {price.loss_routed:.4f}; {price.tokens} tokens")
    if wanted.verify:
        with TemporaryDirectory() as folder:
            output = Path(folder) / "lora"
            found = export_adapter(
                model, wanted.adapter, output, calibration=rows, held_out=held_out
            )
            divergence = _independent(model, load_base(name), output, held_out)
        print(f"reported KL {found.price.kl:.6f}, from the files by plain PEFT {divergence:.6f}")


@torch.inference_mode()
def _independent(routed: Any, base: Any, lora: Path, samples: list[Sample]) -> float:
    """KL divergence per labelled token of the saved LoRA, summed up in fp64."""
    model = PeftModel.from_pretrained(base, str(lora)).eval()
    total, tokens = 0.0, 0
    for sample in samples:
        ids = sample.inputs["input_ids"].to(model.device)
        labelled = sample.inputs["labels"][0, 1:] != -100
        p, q = (
            torch.log_softmax(one(input_ids=ids).logits[0, :-1][labelled].double(), -1)
            for one in (routed, model)
        )
        total += float((p.exp() * (p - q)).sum())
        tokens += int(labelled.sum())
    return total / tokens


if __name__ == "__main__":
    main()
