"""What do sensitivities cost, in memory and time, beside a training step of plain LoRA?

    python -m benchmarks.sensitivity [--repeats 3] [--tokens 512] [--device cuda] [--dtype ...]

Both run on the same Llama-shaped model of 134 M random weights and the same sequence, one at a
time, each in a fresh process. The step is PEFT's LoRA, rank 8 on all linear layers without dropout,
with AdamW; the measure covers the same layers. The peak is the resident memory's on a CPU and
torch's allocated memory on a GPU, over two or more steps (the first makes AdamW's state) or
samples; "beyond" takes away what the process held when the model was loaded. Times leave out the
first.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from .common import SHAPES, in_fresh_process, load_shape, machine, peak_mib, random_ids, spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes of each kind")
    parser.add_argument("--steps", type=int, default=4, help="steps or samples in a process")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype", action="append", choices=("fp32", "bf16", "nf4"), help="fp32 and nf4"
    )
    parser.add_argument("--model", choices=SHAPES, default="134m")
    parser.add_argument("--child", choices=sorted(CHILDREN), help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_observe(arguments)))
        return
    print(machine(("torch", "transformers", "peft", "bitsandbytes")))
    for dtype in arguments.dtype or ["fp32", "nf4"]:
        for checkpointing in (False, True):
            _report(arguments, dtype, checkpointing)


def _report(arguments: argparse.Namespace, dtype: str, checkpointing: bool) -> None:
    options = ["--dtype", dtype, *(["--checkpointing"] if checkpointing else [])]
    for name in ("steps", "tokens", "device", "model"):
        options += [f"--{name}", str(getattr(arguments, name))]
    # Alternating, so that a busy spell of the machine falls on both.
    runs: dict[str, list[dict[str, Any]]] = {"lora": [], "measure": []}
    for _ in range(arguments.repeats):
        for child, done in runs.items():
            done.append(_child(child, options))
    lora, measure = runs["lora"], runs["measure"]
    with_or_without = "with" if checkpointing else "without"
    print(
        f"\n{dtype}, {lora[0]['parameters'] / 1e6:.0f} M parameters, {arguments.tokens} tokens, "
        f"{with_or_without} checkpointing, {arguments.repeats} processes of {arguments.steps}"
    )
    print(f"  {'':<28}{'LoRA step':<26}{'sensitivity':<26}ratio of medians")
    for key, label, digits in (
        ("beyond", "peak beyond the model, MiB", 0),
        ("peak", "peak in all, MiB", 0),
        ("seconds", "seconds", 2),
    ):
        theirs, ours = [run[key] for run in lora], [run[key] for run in measure]
        print(
            f"  {label:<28}{spread(theirs, digits):<26}{spread(ours, digits):<26}"
            f"{median(ours) / median(theirs):.2f}"
        )


def _child(what: str, options: list[str]) -> dict[str, Any]:
    arguments = ["--child", what, *options]
    return in_fresh_process("benchmarks.sensitivity", *arguments, HF_HUB_OFFLINE="1")


def _observe(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    (kind,) = arguments.dtype
    nf4 = kind == "nf4"
    model = load_shape(arguments.model, "fp32" if nf4 else kind, arguments.device, nf4).train()
    ids = random_ids(model, 1, arguments.tokens, "cpu")
    parameters = sum(getattr(p, "quant_state", p).shape.numel() for p in model.parameters())
    loaded = _forget_peak(arguments.device)
    times = CHILDREN[arguments.child](model, ids, arguments)
    if arguments.device == "cpu":
        peak = peak_mib()
    else:
        peak = torch.cuda.max_memory_allocated() / 2**20
    return {
        "parameters": parameters,
        "beyond": peak - loaded,
        "peak": peak,
        "seconds": median(times[1:]),
    }


def _forget_peak(device: str) -> float:
    """Start the peak anew; return what is held now, in MiB."""
    import torch

    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return peak_mib()


def _linears(model: Any) -> list[str]:
    from torch import nn

    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    ]


def _lora(model: Any, ids: Any, arguments: argparse.Namespace) -> list[float]:
    import torch
    from peft import LoraConfig, get_peft_model

    if arguments.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4)
    ids = ids.to(arguments.device)

    def step() -> None:
        with _autocast(arguments):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return _times(step, arguments)


def _measure(model: Any, ids: Any, arguments: argparse.Namespace) -> list[float]:
    import torch

    from axolotl_alphalora.samples import Sample
    from axolotl_alphalora.sensitivity import measure_sensitivity

    sample = Sample("data", {"input_ids": ids, "labels": ids})
    names = _linears(model)
    ends = [time.perf_counter()]
    measure_sensitivity(
        model,
        names,
        [sample] * arguments.steps,
        checkpointing=arguments.checkpointing,
        autocast=torch.bfloat16 if arguments.dtype == ["bf16"] else None,
        progress=lambda _: ends.append(time.perf_counter()),
    )
    return [end - start for start, end in zip(ends, ends[1:], strict=False)]


def _autocast(arguments: argparse.Namespace) -> Any:
    import torch

    enabled = arguments.dtype == ["bf16"]
    return torch.autocast(arguments.device, dtype=torch.bfloat16, enabled=enabled)


def _times(step: Callable[[], None], arguments: argparse.Namespace) -> list[float]:
    import torch

    times = []
    for _ in range(arguments.steps):
        start = time.perf_counter()
        step()
        if arguments.device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times


CHILDREN = {"lora": _lora, "measure": _measure}


if __name__ == "__main__":
    main()
