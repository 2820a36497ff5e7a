"""What a training step with a mixture of experts costs, beside LoRA and other mixtures.

    python -m benchmarks.training_step --model path/to/model --repeats 5
    python -m benchmarks.training_step --model 7b --nf4 --batch 4 --length 2048 --checkpointing

On one base model with shared weights, the same tokens and dtype, in one process, each step in turn:

- ``none``: no adapter, forward and backward through frozen weights;
- ``lora``, ``lora-equal``: PEFT LoRA of one expert's rank, and of rank experts x r;
- ``experts``: AlphaLoRA, the same number of experts on every layer; ``uneven``: numbers of the same
  mean that grow from the first block to the last;
- ``dense``, ``dispatch``: loops over the experts (`benchmarks.mixtures`).

A step is forward, backward, AdamW. Shown: the median and range over repeats, the ratio to
``lora-equal`` by neighbouring steps, what the adapter adds to ``none``, what autograd keeps for a
token, and on a GPU the peak of allocated memory. ``--model`` takes a directory, a hub id, or a
shape with random weights (tiny, 135m, 1b, 7b, 8b). Needs neither Axolotl nor a hub.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from axolotl_alphalora.adapter import AlphaLoraConfig
from axolotl_alphalora.blocks import block_name, group_by_block

from .common import load_shape, machine, spread
from .mixtures import DenseLoop, DispatchLoop, replace_layers

CONTESTANTS = ("none", "lora", "lora-equal", "experts", "uneven", "dense", "dispatch")


def uneven_counts(base: nn.Module, mean: int) -> dict[str, int]:
    """Experts by block: a straight line with this mean, from one expert on."""
    names = [
        name
        for name, module in base.named_modules()
        if hasattr(module, "in_features") and name != "lm_head"
    ]
    blocks = list(group_by_block(names))
    last = max(len(blocks) - 1, 1)
    numbers = {b: 1 + round(2 * (mean - 1) * place / last) for place, b in enumerate(blocks)}
    return {name: numbers[block_name(name)] for name in names}


def build(name: str, base: Any, options: argparse.Namespace) -> Any:
    """One contestant, sharing the base's weights; its adapter is trained in fp32."""
    experts, rank = options.experts, options.rank
    common: dict[str, Any] = {"target_modules": "all-linear", "lora_dropout": options.dropout}
    mixture = {"r": rank, "lora_alpha": 2 * rank, "top_k": options.top_k, **common}
    configs: dict[str, Callable[[], Any]] = {
        "lora": lambda: LoraConfig(r=rank, lora_alpha=2 * rank, **common),
        "lora-equal": lambda: LoraConfig(r=experts * rank, lora_alpha=2 * experts * rank, **common),
        "experts": lambda: AlphaLoraConfig(num_experts=experts, **mixture),
        "uneven": lambda: AlphaLoraConfig(num_experts=uneven_counts(base, experts), **mixture),
    }
    model = copy.deepcopy(base, {id(p): p for p in base.parameters()})
    if name != "none":
        config = configs.get(name, configs["experts"])()
        model = get_peft_model(model, config).get_base_model()
    if name in ("dense", "dispatch"):
        kind = DenseLoop if name == "dense" else DispatchLoop
        model = replace_layers(model, kind, options.dropout)
    if options.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Gradients run through the frozen weights too, as in a run that trains any adapter.
    model.enable_input_require_grads()
    return model.train()


class Contestant:
    """A model, its optimizer, and one training step."""

    def __init__(self, model: Any, ids: torch.Tensor) -> None:
        self.model, self.ids = model, ids
        trained = [p for p in model.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None

    def step(self) -> float:
        """Forward, backward, update; seconds."""
        start = time.perf_counter()
        self.model(input_ids=self.ids, labels=self.ids, use_cache=False).loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.ids.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def kept(self) -> float:
        """Bytes of activations that autograd keeps for a token, each storage counted once."""
        weights = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        found: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.model(input_ids=self.ids, labels=self.ids, use_cache=False).loss
        kept = sum(found.values()) / self.ids.numel()
        del loss
        return kept


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="135m")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--experts", type=int, default=5)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="bf16 on a GPU, else fp32")
    parser.add_argument("--nf4", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    options.dtype = options.dtype or ("fp32" if options.device == "cpu" else "bf16")
    print(machine(("torch", "transformers", "peft", "bitsandbytes")))
    torch.manual_seed(0)
    base = load_shape(options.model, options.dtype, options.device, options.nf4)
    generator = torch.Generator().manual_seed(0)
    shape = options.batch, options.length
    ids = torch.randint(1, base.config.vocab_size, shape, generator=generator)
    ids = ids.to(options.device)
    print(
        f"{options.model}, {options.dtype}{', nf4' if options.nf4 else ''}, {shape[0]} x "
        f"{shape[1]} tokens, {options.experts} experts of rank {options.rank}, dropout "
        f"{options.dropout:g}{', checkpointing' if options.checkpointing else ''}, "
        f"{options.repeats} repeats"
    )
    runs = {n: Contestant(build(n, base, options), ids) for n in options.contestants}
    kept, peak = {}, {}
    for name, run in runs.items():
        kept[name] = run.kept()
        if ids.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        run.step()
        peak[name] = torch.cuda.max_memory_allocated() / 2**20 if ids.is_cuda else None
    names, times = list(runs), {name: [] for name in runs}
    for repeat in range(options.repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(runs[name].step())
    report(runs, times, kept, peak)


def report(
    runs: dict[str, Contestant],
    times: dict[str, list[float]],
    kept: dict[str, float],
    peak: dict[str, float | None],
) -> None:
    """Print the table."""
    print(
        f"{'':<12}{'trained':>12}  {'s a step':<24}{'over lora-equal':<24}{'over none':>10}", end=""
    )
    print(f"{'KiB a token':>13}{'peak MiB':>10}")
    for name, run in runs.items():
        ratio = "-"
        if "lora-equal" in times:
            pairs = zip(times[name], times["lora-equal"], strict=True)
            ratio = spread([a / b for a, b in pairs], 3)
        more = "-"
        if "none" in times:
            more = f"{median(times[name]) - median(times['none']):+.3f}"
        memory = peak[name]
        print(
            f"{name:<12}{run.parameters:>12,}  {spread(times[name], 3):<24}{ratio:<24}{more:>10}"
            f"{kept[name] / 1024:>13.1f}{'-' if memory is None else f'{memory:.0f}':>10}"
        )


if __name__ == "__main__":
    main()
