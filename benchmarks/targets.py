"""What the adapter should cost, and what it costs here: one table.

    python -m benchmarks.targets                    # everything that this machine can measure
    python -m benchmarks.targets --quick            # a try, on a tiny model; no figures to quote
    python -m benchmarks.targets --results out --only step-nf4     # a part; the rest another time

Every measurement is a benchmark of its own in a fresh process, one after the other; what it prints
goes to stderr. On stdout comes a Markdown table of the targets, and under it what was run where.
With ``--results`` the numbers of each are kept in that directory, and what is there from the same
command is not measured again: a long table can be made in parts.

On a CPU steps and decoding are those of SmolLM2-135M-Instruct, where the packages of the quickstart
are installed, else of its shape with random weights; ``--model`` takes another. There the peak of a
process is also what its allocator has not given back: what autograd keeps from forward to backward
stands in for it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .common import SHAPES, save, saved_by, smollm2, spread, summary
from .measures import ratios

Results = dict[str, Any]
FIRST = ("none", "lora-equal", "experts", "experts-plain", "experts-triton")
STEP = ("none", "lora-equal", "experts", "experts-triton", "dispatch")
MIXLORA = ("experts-ffn", "mixlora")


class Missing(Exception):
    """A measurement does not hold what a target is about; says why."""


@dataclass(frozen=True)
class Target:
    """One row of the table.

    Attributes:
        text: What is measured.
        limit: What it should be at most; None where no number was asked for.
        run: The measurement that it is read from.
        read: Takes its results, returns a summary; may raise `Missing`.
        unit: Of the limit and the summary.
    """

    text: str
    limit: float | None
    run: str
    read: Callable[[Results], dict[str, Any]]
    unit: str = ""


def contestant(results: Results, name: str) -> Results:
    """What a training step's results say of a contestant."""
    if name not in results["contestants"]:
        raise Missing(f"no {name}: {results['absent'][name]}")
    return results["contestants"][name]


def over_lora(results: Results) -> Results:
    """Step over that of the LoRA of equal parameters."""
    return contestant(results, "experts")["over_lora_equal"]


def planned(results: Results) -> Results:
    """Step over LoRA's with a plan's numbers, or with uneven ones where there is no plan."""
    name = "plan" if "plan" in results["contestants"] else "uneven"
    return contestant(results, name)["over_lora_equal"]


def overhead(results: Results) -> Results:
    """What the adapter adds to a step without one, over what the dispatch loop adds."""
    mine, loop = (
        contestant(results, name)["more_than_none"]["values"] for name in ("experts", "dispatch")
    )
    return summary(ratios(mine, loop))


def over_mixlora(results: Results) -> Results:
    """Step with experts on the feed-forward layers over mixlora's."""
    theirs = contestant(results, "mixlora")["seconds"]["values"]
    return summary(ratios(contestant(results, "experts-ffn")["seconds"]["values"], theirs))


def memory(key: str) -> Callable[[Results], Results]:
    """Memory over that of the LoRA of equal parameters."""
    return lambda results: summary(
        [contestant(results, "experts")[key] / contestant(results, "lora-equal")[key]]
    )


def inside_limit(results: Results) -> Results:
    """Peak of reserved memory, in GiB, of a run that trained."""
    if not results["trained"]:
        raise Missing(f"did not train: {results['reason']}")
    if results["peak_reserved"] is None:
        raise Missing("trained, but without a limit")
    return summary([results["peak_reserved"] / 2**30])


def decoding(batch: int) -> Callable[[Results], Results]:
    """Decode step over the unmerged LoRA's."""
    return lambda results: results["batches"][str(batch)]["AlphaLoRA"]["over_lora"]


def starting(doing: str, raw: bool = False) -> Callable[[Results], Results]:
    """Seconds of one thing at start-up, or how often the raw bytes' seconds they are."""

    def read(results: Results) -> Results:
        found = {row["who"]: row for row in results["rows"] if row["doing"] == doing}
        seconds = found["AlphaLoRA"]["seconds"]
        if not raw:
            return seconds
        return summary(ratios(seconds["values"], found["AlphaLoRA, raw"]["seconds"]["values"]))

    return read


def step_targets(run: str, where: str, key: str, kind: str) -> list[Target]:
    """The targets that are read from one run of `benchmarks.training_step`."""
    lora = f"LoRA of equal parameters, {where}"
    return [
        Target(f"training step over {lora}", 1.05, run, over_lora),
        Target("the same with a plan's numbers (uneven ones without)", 1.05, run, planned),
        Target(f"overhead over a dispatch loop's, {where}", 0.25, run, overhead),
        Target(f"{kind} over {lora}", 1.05, run, memory(key)),
        Target(f"training step over axolotl's mixlora, {where}", 0.6, f"ffn-{run}", over_mixlora),
    ]


def decode_targets(run: str, where: str) -> list[Target]:
    """The targets that are read from one run of `benchmarks.decode`."""
    return [
        Target(f"decode over unmerged LoRA, batch {n}, {where}", 1.10, run, decoding(n))
        for n in (1, 16)
    ]


TARGETS = [
    *step_targets("step-cpu", "CPU", "kept_bytes", "kept activations (for peak memory)"),
    Target("training step over LoRA's, CPU, dropout 0", 1.05, "step-cpu-0", over_lora),
    *decode_targets("decode-cpu", "CPU"),
    *step_targets("step-nf4", "GPU, 7B in nf4", "peak_bytes", "peak memory"),
    *step_targets("step-bf16", "GPU, 7B in bf16", "peak_bytes", "peak memory"),
    Target("7B QLoRA run, 160 experts, inside 12 GiB", 12.0, "memory-7b", inside_limit, " GiB"),
    Target("8B QLoRA run, 160 experts, inside 16 GiB", 16.0, "memory-8b", inside_limit, " GiB"),
    *decode_targets("decode-gpu", "GPU, 7B in bf16"),
    Target("wrapping 224 layers of a 7B, on meta", 2.0, "startup", starting("wrap"), " s"),
    Target("the same with real weights", 2.0, "startup", starting("wrap, real"), " s"),
    Target("saving an adapter, over raw bytes", None, "startup", starting("save", True)),
    Target("loading an adapter, over raw bytes", None, "startup", starting("load", True)),
]  # fmt: skip
ON_GPU = (
    "step-nf4",
    "ffn-step-nf4",
    "step-bf16",
    "ffn-step-bf16",
    "memory-7b",
    "memory-8b",
    "decode-gpu",
)


def commands(options: argparse.Namespace, model: str) -> dict[str, list[str]]:
    """The measurements: name to module and arguments.

    Args:
        options: What the command line gives.
        model: What steps and decoding on a CPU are measured on.
    """
    repeats = ["--repeats", str(options.repeats)]
    cpu, gpu = ["--device", "cpu"], ["--device", "cuda"]
    large = ["--model", "tiny" if options.quick else "7b"]
    steps = ["benchmarks.training_step", *repeats, "--contestants"]
    sizes = [["--batch", "2", "--length", "512"], ["--batch", "4", "--length", "2048"]]
    decode = ["benchmarks.decode", *repeats]
    limit = ["benchmarks.memory_limit"]
    if options.quick:
        sizes = [["--batch", "1", "--length", "16"]] * 2
        decode += ["--steps", "2", "--prompt", "4"]
        limit += ["--length", "16", "--steps", "2"]
    on_cpu = [*cpu, "--model", model, *sizes[0]]
    planned_on_cpu = "uneven" if model in SHAPES else "plan"
    on_gpu = [*gpu, *large, *sizes[1], "--checkpointing"]
    both = {"step": [*steps, *STEP, "uneven", *on_gpu], "ffn-step": [*steps, *MIXLORA, *on_gpu]}
    limited = {n: ["--model", "tiny" if options.quick else n] for n in ("7b", "8b")}
    return {
        "step-cpu": [*steps, *STEP, planned_on_cpu, *on_cpu],
        # On its own as on a GPU, where mixlora's last activations would stay beside the others'.
        "ffn-step-cpu": [*steps, *MIXLORA, *on_cpu],
        "step-cpu-0": [*steps, *FIRST, *on_cpu, "--dropout", "0"],
        "decode-cpu": [*decode, *cpu, "--model", model],
        **{f"{kind}-nf4": [*command, "--nf4"] for kind, command in both.items()},
        **{f"{kind}-bf16": command for kind, command in both.items()},
        "memory-7b": [*limit, *limited["7b"], "--limit-gib", "12"],
        "memory-8b": [*limit, *limited["8b"], "--limit-gib", "16"],
        "decode-gpu": [*decode, *gpu, *large],
        "startup": ["benchmarks.startup", *repeats, *large],
    }


def cpu_model(options: argparse.Namespace) -> str:
    """What steps and decoding on a CPU are measured on."""
    if options.model is not None:
        return options.model
    if options.quick:
        return "tiny"
    with suppress(ImportError):
        from axolotl_alphalora.quickstart.files import QuickstartError

        with suppress(QuickstartError):
            return smollm2()
    return "135m"


def measure(options: argparse.Namespace) -> tuple[dict[str, Results], dict[str, str]]:
    """Run what can be run here.

    Returns:
        Measurement to its results, with the ``command`` that made them; and to why there are none.
    """
    found, reasons = {}, {}
    for name, command in commands(options, cpu_model(options)).items():
        kept = options.results and options.results / f"{name}.json"
        known = json.loads(kept.read_text()) if kept and kept.exists() else {}
        if known.get("command") == command:
            found[name] = known
        elif name in ON_GPU and not torch.cuda.is_available():
            reasons[name] = "needs a CUDA GPU"
        elif options.only and name not in options.only:
            reasons[name] = "left out by --only"
        else:
            try:
                found[name] = {"command": command} | saved_by(*command)
            except subprocess.CalledProcessError as error:
                reasons[name] = f"the benchmark failed, exit status {error.returncode}"
            else:
                save(kept, found[name])
    return found, reasons


def judged(target: Target, found: dict[str, Results], reasons: dict[str, str]) -> list[str]:
    """One row of the table: target, asked, measured, and what that means."""
    unit = target.unit
    asked = "-" if target.limit is None else f"≤ {target.limit:g}{unit}"
    try:
        if target.run in reasons:
            raise Missing(reasons[target.run])
        measured = target.read(found[target.run])
    except Missing as reason:
        return [target.text, asked, "-", f"not measured here: {reason}"]
    shown = f"{measured['median']:.3f}{unit}"
    if len(measured["values"]) > 1:
        shown = f"{spread(measured, 3)}{unit}"
    if target.limit is None:
        return [target.text, asked, shown, "no number asked for"]
    return [target.text, asked, shown, "met" if measured["median"] <= target.limit else "not met"]


def report(found: dict[str, Results], reasons: dict[str, str]) -> None:
    """Print the table in Markdown, and what it rests on."""
    print("| target | asked | measured: median (range) | |\n| --- | --- | --- | --- |")
    for target in TARGETS:
        print(f"| {' | '.join(judged(target, found, reasons))} |")
    print()
    for name, results in found.items():
        # Of a directory only the name: where it is means nothing elsewhere.
        words = [Path(word).name if os.sep in word else word for word in results["command"]]
        print(f"- {name}: `python -m {' '.join(words)}`; {results['machine']}")


def main() -> None:
    """Measure what can be measured here and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = list(dict.fromkeys(target.run for target in TARGETS))
    parser.add_argument("--model", help="for a CPU: a directory, a hub id or a shape")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--quick", action="store_true", help="a tiny model, one repeat")
    parser.add_argument("--only", nargs="+", choices=names, help="measure only these")
    parser.add_argument("--results", type=Path, metavar="DIR", help="keep the numbers there")
    options = parser.parse_args()
    options.repeats = options.repeats or (1 if options.quick else 5)
    if options.results is not None:
        options.results.mkdir(parents=True, exist_ok=True)
    found, reasons = measure(options)
    if options.quick:
        print("A try on a tiny model: these figures say nothing about the targets.\n")
    report(found, reasons)


if __name__ == "__main__":
    main()
