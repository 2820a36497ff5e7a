"""Several GPUs of one machine: does each engine train the same adapter, and what does it take?

    torchrun --nproc-per-node=4 -m benchmarks.ranks --engine fsdp2
    torchrun --nproc-per-node=4 -m benchmarks.ranks --engine ddp --nf4 --balance-over global_batch
    python -m benchmarks.ranks --engine ddp --accumulation 4      # one process, the same rows

Prints one JSON line: the losses of every step, which a single process on the same global batch
(`--accumulation` times the ranks) must repeat, tokens a second, the largest memory of a rank, and
whether the saved adapter is whole. Random weights, random tokens. Needs neither Axolotl nor a hub;
DDP with `--model tiny` also runs on CPU ranks. ZeRO needs the deepspeed package.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from safetensors import safe_open
from transformers import (
    BitsAndBytesConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from axolotl_alphalora.adapter import AlphaLoraConfig

from .common import SHAPES, machine, shape_config

FSDP = {
    "version": 2,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
}


def engine(name: str) -> dict[str, Any]:
    """Training arguments that choose an engine."""
    if name == "ddp":
        return {"ddp_find_unused_parameters": False}
    if name == "fsdp2":
        return {"fsdp": True, "fsdp_config": FSDP}
    stage = {"stage": int(name.removeprefix("zero"))}
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    return {
        "deepspeed": {"zero_optimization": stage, "bf16": {"enabled": "auto"}}
        | dict.fromkeys(auto, "auto")
    }


def model(options: argparse.Namespace, folder: Path) -> Any:
    """A Llama with random weights and an adapter on all its linear layers."""
    config = shape_config(options.model)
    set_seed(0)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    if options.nf4:
        if not (folder / "config.json").exists():
            LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
        bits = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
        place = {"": int(os.environ.get("LOCAL_RANK", 0))} if torch.cuda.is_available() else None
        base = LlamaForCausalLM.from_pretrained(folder, quantization_config=bits, device_map=place)
    else:
        base = LlamaForCausalLM(config).to(dtype)
    base.enable_input_require_grads()
    set_seed(0)
    return get_peft_model(
        base,
        AlphaLoraConfig(
            r=8,
            num_experts=5,
            target_modules="all-linear",
            balance_over=options.balance_over,
            init_weights=False,
            task_type="CAUSAL_LM",
        ),
    )


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train and report."""
    cuda = torch.cuda.is_available()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 32000, (256, options.length), generator=generator)
    arguments = TrainingArguments(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=1,
        max_steps=options.steps,
        gradient_accumulation_steps=options.accumulation,
        learning_rate=1e-4,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=cuda,
        use_cpu=not cuda,
        gradient_checkpointing=options.engine != "fsdp2",
        gradient_checkpointing_kwargs={"use_reentrant": options.engine == "zero3"},
        train_sampling_strategy="sequential",
        **engine(options.engine),
    )
    trainer = Trainer(
        model=model(options, folder / "base"),
        args=arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder / "out"))
    peak = torch.tensor(torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0)
    peaks = trainer.accelerator.gather(peak.to(trainer.args.device).reshape(1))
    tokens = options.steps * options.accumulation * options.length * trainer.args.world_size
    return {
        "engine": options.engine,
        "nf4": options.nf4,
        "ranks": trainer.args.world_size,
        "balance_over": options.balance_over,
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "tokens_per_second": round(tokens / seconds, 1),
        "peak_gib": float(peaks.max()),
        "adapter_is_whole": whole(folder / "out", options),
        "machine": machine(),
    }


def whole(folder: Path, options: argparse.Namespace) -> bool:
    """Whether all A, B and routers of all seven linear layers of every block were saved."""
    file = folder / "adapter_model.safetensors"
    if not file.exists():  # not the first process
        return False
    with safe_open(file, "pt") as saved:
        names = [name for name in saved.keys() if "alphalora_" in name]  # noqa: SIM118
    return len(names) == 3 * 7 * shape_config(options.model).num_hidden_layers


def main() -> None:
    """Read the command line, run, and print from the first process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--engine", choices=["ddp", "fsdp2", "zero1", "zero2", "zero3"], default="ddp"
    )
    parser.add_argument("--model", choices=SHAPES, default="8b")
    parser.add_argument("--nf4", action="store_true")
    parser.add_argument(
        "--balance-over", choices=["micro_batch", "global_batch"], default="micro_batch"
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="shared by the ranks; needed with --nf4")
    options = parser.parse_args()
    if options.nf4 and options.folder is None:
        parser.error(
            "--nf4 needs --folder, where the base is written once: run with one rank first"
        )
    with tempfile.TemporaryDirectory() as scratch:
        report = run(options, options.folder or Path(scratch))
    if int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
