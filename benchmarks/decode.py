"""What does a decode step cost, beside an unmerged PEFT LoRA of equal parameters?

    python -m benchmarks.decode --model path/to/model [--batch 1 16] [--repeats 5] [--nf4]

One base model in one process, three times: alone, with a LoRA of rank N * r, and with N experts of
rank r (top-k, so that only the routers come on top), on all linear layers and with random weights.
Every repeat reads the same prompt with each of them, then feeds one token at a time to the
key-value cache, a step of each in turn, so that a busy spell of the machine falls on all. A repeat
counts with its median step and with the median of its steps' ratios; shown are the median and the
range over repeats. `--model` takes a directory, a hub id, or a shape with random weights (tiny,
135m, 1b, 7b, 8b). Needs neither Axolotl nor a hub.
"""

from __future__ import annotations

import argparse
import copy
import time
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model

from axolotl_alphalora.adapter import AlphaLoraConfig

from .common import command_line, load_shape, machine, parsed, random_ids, ratios, spread


def variants(base: Any, options: argparse.Namespace) -> dict[str, Any]:
    """The base model alone and with each adapter; the three share the base's weights."""
    experts, rank = options.experts, options.rank
    common: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    configs: dict[str, PeftConfig] = {
        "LoRA": LoraConfig(
            r=experts * rank, lora_alpha=2 * experts * rank, init_lora_weights=False, **common
        ),
        "AlphaLoRA": AlphaLoraConfig(
            r=rank, lora_alpha=2 * rank, num_experts=experts, top_k=options.top_k,
            init_weights=False, **common,
        ),
    }  # fmt: skip
    models = {"no adapter": base}
    for name, config in configs.items():
        shared = {id(parameter): parameter for parameter in base.parameters()}
        # Generation calls the model inside the PeftModel.
        models[name] = get_peft_model(copy.deepcopy(base, shared), config).get_base_model().eval()
    return models


def decode(models: dict[str, Any], ids: torch.Tensor, steps: int) -> dict[str, list[float]]:
    """Read a prompt with each model, then decode greedily, one step of each in turn; seconds."""
    mask = torch.ones(ids.shape[0], ids.shape[1] + steps, dtype=torch.long, device=ids.device)
    times: dict[str, list[float]] = {name: [] for name in models}
    names = list(models)
    with torch.no_grad():
        prompt = {"input_ids": ids, "attention_mask": mask[:, : ids.shape[1]], "use_cache": True}
        outs = {name: model(**prompt) for name, model in models.items()}
        for step in range(steps):
            turn = step % len(names)
            for name in names[turn:] + names[:turn]:
                inputs = {
                    "input_ids": outs[name].logits[:, -1:].argmax(-1),
                    "attention_mask": mask[:, : ids.shape[1] + step + 1],
                    "past_key_values": outs[name].past_key_values,
                }
                _wait(ids)
                start = time.perf_counter()
                outs[name] = models[name](**inputs, use_cache=True)
                _wait(ids)
                times[name].append(time.perf_counter() - start)
    return times


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def measure(models: dict[str, Any], batch: int, options: argparse.Namespace) -> None:
    """Decode with each model in turn, and print the table of a batch size."""
    ids = random_ids(models["LoRA"], batch, options.prompt, options.device)
    decode(models, ids, 2)
    repeats = [decode(models, ids, options.steps) for _ in range(options.repeats)]
    print(f"\nbatch {batch}: {options.repeats} repeats of {options.steps} steps")
    print(f"  {'':<12}{'ms a step':<28}{'tokens/s':<12}over LoRA")
    for name in models:
        seconds = [median(times[name]) for times in repeats]
        over = [median(ratios(times[name], times["LoRA"])) for times in repeats]
        speed = f"{batch / median(seconds):.1f}"
        print(f"  {name:<12}{spread([1e3 * s for s in seconds]):<28}{speed:<12}{spread(over, 3)}")


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--prompt", type=int, default=32, help="tokens read before")
    options = parsed(parser)
    print(machine(("torch", "transformers", "peft", "bitsandbytes")))
    base = load_shape(options.model, options.dtype, options.device, options.nf4)
    models = variants(base.eval(), options)
    lora, experts = (
        sum(p.numel() for p in models[name].parameters() if p.requires_grad)
        for name in ("LoRA", "AlphaLoRA")
    )
    print(
        f"{options.model}, {options.dtype}{', nf4' if options.nf4 else ''}; trainable: LoRA "
        f"{lora:,}, {options.experts} experts of rank {options.rank} {experts:,}"
    )
    for batch in options.batch:
        measure(models, batch, options)


if __name__ == "__main__":
    main()
