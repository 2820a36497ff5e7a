"""What does a training step with a mixture of experts cost, beside LoRA and other mixtures?

    python -m benchmarks.training_step --model path/to/model --repeats 5
    python -m benchmarks.training_step --model path/to/model --along experts 1 2 4 8 16
    python -m benchmarks.training_step --experts 20 --along segments 1 2 4 8 \\
        --contestants none experts experts-lora     # up to 160 experts in a layer
    python -m benchmarks.training_step --batch 1 --length 256 --dropout 0 --contestants none \\
        lora-equal experts experts-lora segments-8 segments-8-lora      # many small operators
    python -m benchmarks.training_step --model 7b --nf4 --batch 4 --length 2048 --checkpointing
    python -m benchmarks.training_step --model 7b --nf4 --batch 1 --length 2048 --checkpointing \\
        --contestants uneven --limit-gib 12        # does a QLoRA run fit a consumer's GPU?

On the same base model, tokens and dtype, each step in turn (`benchmarks.steps`):

- `none`: no adapter, forward and backward through frozen weights;
- `lora`, `lora-equal`: PEFT LoRA of one expert's rank, and of rank experts x r;
- `experts`: AlphaLoRA, the same number of experts on every layer; `experts-plain`: by plain
  operators and autograd; `experts-triton`: with the Triton kernels, on a GPU;
- `plan`: with the numbers of a plan of this mean, made from the base's own weights, which
  random weights of a shape do not have; `uneven`: numbers of this mean that grow from the first
  block to the last;
- `dispatch`: a loop over the experts, as mixtures are commonly written;
- `mixlora`: axolotl's, on the feed-forward layers, with no LoRA on the others; where axolotl is
  installed; `experts-ffn`: AlphaLoRA with as many experts of that rank on the same layers;
- where they are named, `segments-4`, `segments-8`, `router-16`, `share-a`: `experts`,
  each cut into so many, with routers of rank 16, or with one A a layer; and `experts-lora`,
  `segments-4-lora` and so on, a LoRA with as many parameters as that one, routers included.

A step is forward (under autocast, where the dtype is bf16), backward, AdamW. Shown: the median and
range over repeats, tokens a second, the ratio by neighbouring steps to the contestant's own LoRA,
or else to `lora-equal`, what the adapter adds to `none`, what autograd keeps for a token (with
checkpointing, the inputs of the blocks come on top), the operators that forward and backward
dispatch (kernels, on a GPU), and on a GPU the peak of allocated memory of a step, less what the
other contestants hold.

`--along` repeats this for several numbers of experts, segments, ranks or lengths, and shows the
slope of the straight line with the least squares through what the adapter adds: for one more, as
a share of the first step without an adapter.

`--limit-gib` is what PyTorch's allocator may hand out from before a base in nf4 is loaded until
the last step; the optimizer is then bitsandbytes' PagedAdamW8bit, whose paged states lie outside of
the limit, as does CUDA's own context. Needs neither Axolotl nor a hub.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from typing import Any

import torch

from .common import command_line, load_shape, machine, parsed, ratios, spread
from .contestants import CONTESTANTS, MORE
from .steps import differences, slope, take_steps

AXES = ("experts", "rank", "length", "segments")


def measure(options: argparse.Namespace, base: Any) -> dict[str, list[float]]:
    """Take the steps, print the table, and return what each contestant adds to `none`."""
    facts, absent, times = take_steps(options.contestants, options, base)
    print(
        f"\n{options.model}, {options.dtype}{', nf4' if options.nf4 else ''}, {options.batch} x "
        f"{options.length} tokens, {options.experts} experts of rank {options.rank}"
        f"{f' in {options.segments} segments' if options.segments > 1 else ''}, dropout "
        f"{options.dropout:g}{', checkpointing' if options.checkpointing else ''}, "
        f"{options.repeats} repeats"
    )
    for name, reason in absent.items():
        print(f"no {name}: {reason}")
    kind = "kernels" if options.device != "cpu" else "operators"
    print(
        f"{'':<15}{'trained':>12}  {'s a step':<24}{'tokens/s':>9}  {'over its LoRA':<24}"
        f"{'over none, s':<26}{'KiB a token':>12}{kind:>11}{'peak MiB':>10}"
    )
    tokens, adds = options.batch * options.length, {}
    for name, seconds in times.items():
        row, ratio, more = facts[name], "-", "-"
        lora = times.get(f"{name}-lora", times.get("lora-equal"))
        if lora is not None:
            ratio = spread(ratios(seconds, lora), 3)
        if "none" in times and name != "none":
            adds[name] = differences(seconds, times["none"])
            more = spread(adds[name], 3)
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
        print(
            f"{name:<15}{row['parameters']:>12,}  {spread(seconds, 3):<24}"
            f"{tokens / sorted(seconds)[len(seconds) // 2]:>9.0f}  {ratio:<24}{more:<26}"
            f"{row['kept_bytes'] / 1024:>12.1f}{row['ops']:>11,}{peak:>10}"
        )
    if options.limit_gib is not None and options.device != "cpu":
        print(f"limit {options.limit_gib:g} GiB, reserved at most ", end="")
        print(f"{torch.cuda.max_memory_reserved() / 2**30:.2f} GiB")
    adds["none"] = times.get("none", [])
    return adds


def measure_along(options: argparse.Namespace, base: Any) -> None:
    """Measure at every point of an axis, and print the slopes."""
    axis, *points = options.along
    places = [int(point) for point in points]
    found: dict[str, list[list[float]]] = defaultdict(list)
    for place in places:
        here = argparse.Namespace(**{**vars(options), axis: place})
        for name, seconds in measure(here, base).items():
            found[name].append(seconds)
    first = found.pop("none")[0]
    print()
    for name, of_places in found.items():
        turns = zip(zip(*of_places, strict=True), first, strict=True)
        shares = [100 * slope(places, turn) / none for turn, none in turns]
        print(f"{name}: {spread(shares, 3)} % of the first step without, for {axis} + 1")


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--segments", type=int, default=1, help="of the experts, where not named")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument(
        "--contestants", nargs="+", choices=(*CONTESTANTS, *MORE), default=CONTESTANTS
    )
    parser.add_argument("--along", nargs="+", metavar=("AXIS", "N"), help=", ".join(AXES))
    parser.add_argument("--limit-gib", type=float)
    options = parsed(parser)
    if options.along and (
        options.along[0] not in AXES
        or len(options.along) < 3
        or not all(point.isdigit() for point in options.along[1:])
        or "none" not in options.contestants
    ):
        parser.error(f"--along takes one of {', '.join(AXES)}, two numbers or more, and `none`")
    print(machine(("torch", "transformers", "peft", "bitsandbytes", "axolotl")))
    base = None
    if options.device != "cpu":
        here = (options.model, options.dtype, options.device, options.nf4, options.limit_gib)
        base = load_shape(*here)
    (measure_along if options.along else measure)(options, base)


if __name__ == "__main__":
    main()
