"""What a training step with a mixture of experts costs, beside LoRA and other mixtures.

    python -m benchmarks.training_step --model path/to/model --repeats 5
    python -m benchmarks.training_step --model 7b --nf4 --batch 4 --length 2048 --checkpointing

On the same base model, tokens and dtype, each step in turn; on a CPU each in a process of its own
and with weights of its own (see `benchmarks.workers`), on a GPU, or with ``--together``, in one
process with shared weights:

- ``none``: no adapter, forward and backward through frozen weights;
- ``lora``, ``lora-equal``: PEFT LoRA of one expert's rank, and of rank experts x r;
- ``experts``: AlphaLoRA, the same number of experts on every layer; ``experts-plain``: by plain
  operators and autograd; ``experts-triton``: with the Triton kernels, on a GPU;
- ``plan``: with the numbers of a plan of this mean, made from the base's own weights, which
  random weights of a shape do not have; ``uneven``: numbers of this mean that grow from the first
  block to the last;
- ``dense``, ``dispatch``: loops over the experts (`benchmarks.mixtures`);
- ``mixlora``: axolotl's, on the feed-forward layers, with no LoRA on the others; where axolotl is
  installed; ``experts-ffn``: AlphaLoRA with as many experts of that rank on the same layers.

A step is forward (under autocast, where the dtype is bf16), backward, AdamW. Shown: the median and
range over repeats, tokens a second, the ratio to ``lora-equal`` by neighbouring steps, what the
adapter adds to ``none``, what autograd keeps for a token (with checkpointing, the inputs of the
blocks come on top), the operators that forward and backward dispatch (kernels, on a GPU), and on a
GPU the peak of allocated memory of a step, less what the other contestants hold: as if this one
were alone. ``--compile-check`` also counts the breaks in torch.compile's graph of a forward.
``--model`` takes a directory, a hub id, or a shape with random weights (tiny, 135m, 1b, 7b, 8b).
Needs neither Axolotl nor a hub.
"""

from __future__ import annotations

import argparse
from typing import Any

from .common import command_line, machine, parsed, save, settings, spread, summary
from .contestants import CONTESTANTS, Absent
from .entrants import Field
from .measures import Steps, differences, in_turn, ratios


def step_options(parser: argparse.ArgumentParser) -> None:
    """Add what describes a training step."""
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument(
        "--together", action="store_true", help="one process on a CPU too; takes less memory"
    )


def apart(options: argparse.Namespace) -> bool:
    """Whether every contestant gets a process of its own."""
    return options.device == "cpu" and not options.together


def described(options: argparse.Namespace, length: str) -> str:
    """The options of a training step in words."""
    return (
        f"{options.model}, {options.dtype}{', nf4' if options.nf4 else ''}, {options.batch} x "
        f"{length} tokens, {options.experts} experts of rank {options.rank}, dropout "
        f"{options.dropout:g}{', checkpointing' if options.checkpointing else ''}, "
        f"{options.repeats} repeats"
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Take the steps and count.

    Args:
        options: What the command line gives.

    Returns:
        ``machine``, ``settings``, ``absent`` (contestant to why it is not there), and
        ``contestants``: for each its trained ``parameters``, ``seconds`` of a step and
        ``tokens_per_second``; where ``lora-equal`` and ``none`` took part ``over_lora_equal`` and
        ``more_than_none``, in seconds; ``kept_bytes`` for a token, ``ops``, ``kind_of_ops``,
        ``peak_bytes`` and ``graph_breaks``, None where they were not counted. What was measured
        repeatedly is a summary of the repeats, see `benchmarks.common.summary`.
    """
    about = machine(("torch", "transformers", "peft", "bitsandbytes", "axolotl"))
    runs: dict[str, Steps] = {}
    facts, absent = {}, {}
    with Field(options, separate=apart(options)) as field:
        for name in options.contestants:
            try:
                facts[name], runs[name] = field.enter(name, options, counting=True)
            except Absent as reason:
                absent[name] = str(reason)
        times = in_turn(runs, options.repeats)
    tokens = options.batch * options.length
    found: dict[str, dict[str, Any]] = {}
    for name, seconds in times.items():
        found[name] = {**facts[name], "seconds": summary(seconds)}
        found[name]["tokens_per_second"] = summary(tokens / second for second in seconds)
        if "lora-equal" in times:
            found[name]["over_lora_equal"] = summary(ratios(seconds, times["lora-equal"]))
        if "none" in times:
            found[name]["more_than_none"] = summary(differences(seconds, times["none"]))
    return {
        "benchmark": "training_step",
        "machine": about,
        "settings": settings(options),
        "absent": absent,
        "contestants": found,
    }


def report(results: dict[str, Any]) -> None:
    """Print the table."""
    found = results["contestants"]
    kind = next(iter(found.values()))["kind_of_ops"]
    print(
        f"{'':<15}{'trained':>12}  {'s a step':<24}{'tokens/s':>9}  {'over lora-equal':<24}"
        f"{'over none':>10}{'KiB a token':>13}{kind:>11}{'breaks':>8}{'peak MiB':>10}"
    )
    for name, row in found.items():
        ratio, more = row.get("over_lora_equal"), row.get("more_than_none")
        peak, breaks = row["peak_bytes"], row["graph_breaks"]
        print(
            f"{name:<15}{row['parameters']:>12,}  {spread(row['seconds'], 3):<24}"
            f"{row['tokens_per_second']['median']:>9.0f}  "
            f"{'-' if ratio is None else spread(ratio, 3):<24}"
            f"{'-' if more is None else format(more['median'], '+.3f'):>10}"
            f"{row['kept_bytes'] / 1024:>13.1f}{row['ops']:>11,}"
            f"{'-' if breaks is None else breaks:>8}"
            f"{'-' if peak is None else format(peak / 2**20, '.0f'):>10}"
        )


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = command_line(__doc__)
    step_options(parser)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--compile-check", action="store_true", help="count graph breaks; slow")
    options = parsed(parser)
    results = measure(options)
    print(results["machine"])
    print(described(options, str(options.length)))
    for name, reason in results["absent"].items():
        print(f"no {name}: {reason}")
    report(results)
    save(options.json, results)


if __name__ == "__main__":
    main()
