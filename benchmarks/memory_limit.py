"""Does a QLoRA run with experts fit a consumer's GPU?

    python -m benchmarks.memory_limit --model 7b --limit-gib 12
    python -m benchmarks.memory_limit --model 8b --limit-gib 16

A model with random weights in nf4 (double quantisation), AlphaLoRA on its seven kinds of linear
layers with numbers of experts that grow from the first block to the last, 5 of rank 8 on average
(160 over the 32 blocks), 1 x 2048 tokens, gradient checkpointing, bf16 autocast, bitsandbytes'
PagedAdamW8bit. The base stays as it is loaded: nothing of it is cast to fp32. PyTorch's allocator
refuses more than the limit from before the base is loaded until the last step; what lies outside of
it, CUDA's own context (some hundred MiB) and the optimizer's paged states, does not count.

Shown: whether it trained, the losses, and the peak of allocated and reserved memory. Needs a CUDA
GPU and bitsandbytes. ``--device cpu --model tiny`` goes the same way without a limit, with torch's
AdamW.
"""

from __future__ import annotations

import argparse
import gc
import math
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .common import (
    load_shape,
    machine,
    make_shape,
    random_ids,
    save,
    settings,
    spread,
    summary,
)
from .contestants import Contestant, build, uneven_counts

LIMITS = {"tiny": 12.0, "7b": 12.0, "8b": 16.0}
"""Models, and GiB of a GPU that they should fit."""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train under the limit.

    Args:
        options: What the command line gives.

    Returns:
        ``machine``, ``settings``, ``trained`` (whether every step was taken and every loss is
        finite), ``reason`` if not, ``parameters`` trained, ``experts`` over all blocks, ``losses``,
        ``seconds`` of a step (`benchmarks.common.summary`, None without a step),
        ``peak_allocated`` and ``peak_reserved`` in bytes, None on a CPU.
    """
    cuda = options.device != "cpu"
    found: dict[str, Any] = {
        "benchmark": "memory_limit",
        "machine": machine(("torch", "transformers", "peft", "bitsandbytes")),
        "settings": settings(options),
        "trained": False,
        "reason": None,
    }
    seconds: list[float] = []
    losses: list[float] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        torch.manual_seed(0)
        make_shape(options.model, "bf16", options.device).save_pretrained(folder)
        gc.collect()
        if cuda:
            limit_memory(options.limit_gib)
        try:
            run = start(folder, options, found)
            for _ in range(options.steps):
                seconds.append(run.step())
                assert run.last_loss is not None
                losses.append(run.last_loss.item())
        except torch.OutOfMemoryError as error:
            found["reason"] = f"out of memory: {str(error).splitlines()[0]}"
        else:
            found["trained"] = all(map(math.isfinite, losses))
            found["reason"] = None if found["trained"] else "a loss is not finite"
    return found | {
        "losses": losses,
        "seconds": summary(seconds) if seconds else None,
        "peak_allocated": torch.cuda.max_memory_allocated() if cuda else None,
        "peak_reserved": torch.cuda.max_memory_reserved() if cuda else None,
    }


def limit_memory(gib: float) -> None:
    """Let PyTorch's allocator hand out no more than this from now on."""
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(min(gib * 2**30 / whole, 1.0))
    torch.cuda.reset_peak_memory_stats()


def start(folder: str, options: argparse.Namespace, found: dict[str, Any]) -> Contestant:
    """Load the base and add the adapter; notes its size in what was found."""
    base = load_shape(folder, "bf16", options.device, nf4=True)
    counts = uneven_counts(base, options.experts)
    ids = random_ids(base, 1, options.length, options.device)
    optimizer: Any = None
    if options.device != "cpu":
        from bitsandbytes.optim import PagedAdamW8bit

        optimizer = partial(PagedAdamW8bit, lr=1e-4)
    run = build("uneven", base, ids, options, optimizer=optimizer)
    kind = next(iter(counts)).rpartition(".")[2]
    found["parameters"] = run.parameters
    found["experts"] = sum(n for name, n in counts.items() if name.endswith(f".{kind}"))
    return run


def report(results: dict[str, Any]) -> None:
    """Print what came of it."""
    known = results["settings"]
    limit = "no limit" if known["device"] == "cpu" else f"limit {known['limit_gib']:g} GiB"
    print(results["machine"])
    print(
        f"{known['model']}, nf4, 1 x {known['length']} tokens, {known['experts']} experts of rank "
        f"{known['rank']} on average, {known['steps']} steps, {limit}"
    )
    print(f"{'trained':<16}{'yes' if results['trained'] else 'no: ' + results['reason']}")
    if "parameters" in results:
        print(f"{'parameters':<16}{results['parameters']:,}")
        print(f"{'experts':<16}{results['experts']} over the blocks, on every kind of layer")
    print(f"{'losses':<16}{', '.join(f'{loss:.3f}' for loss in results['losses']) or '-'}")
    if results["seconds"] is not None:
        print(f"{'s a step':<16}{spread(results['seconds'], 3)}")
    for kind in ("allocated", "reserved"):
        peak = results[f"peak_{kind}"]
        print(f"{'peak ' + kind:<16}{'-' if peak is None else f'{peak / 2**30:.2f} GiB'}")


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=LIMITS, default="7b")
    parser.add_argument("--limit-gib", type=float, help="12; for 8b 16")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--experts", type=int, default=5)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--folder", help="where to save the base; the usual one for such files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args()
    options.limit_gib = options.limit_gib or LIMITS[options.model]
    options.checkpointing, options.dtype = True, "bf16"
    if options.device == "cpu" and options.model != "tiny":
        parser.error("a CPU has no limit to train inside; only --model tiny runs there, for a try")
    if options.device != "cpu" and not torch.cuda.is_available():
        print("nothing was run: this needs a CUDA GPU (--device cpu --model tiny for a try)")
        return
    results = measure(options)
    report(results)
    save(options.json, results)


if __name__ == "__main__":
    main()
