"""What it takes to start: wrapping a model, saving and loading the adapter, sharing out experts.

    python -m benchmarks.startup --model 7b --experts 8 --repeats 5
    python -m benchmarks.startup --meta-only      # no memory, no files

AlphaLoRA with numbers of experts that grow from block to block, their mean ``--experts``, beside a
PEFT LoRA of rank experts x r, in one process and in turn. With the defaults that is a model of
LLaMA-2-7B's shape, 224 linear layers, and 160 million parameters in an adapter.

- ``wrap``: `get_peft_model` on a base on the meta device. PEFT puts an adapter where its base is:
  the weights are drawn, layer by layer, and let go; ``low_cpu_mem_usage`` draws none.
- ``wrap, real``: the same on a base on the CPU whose weights are views of single numbers, so that
  only the adapter takes memory. ``save`` is `save_pretrained` of that model, ``load``
  `PeftModel.from_pretrained` onto a fresh base, which is not timed. Beside them the same bytes raw:
  `safetensors.torch.save_file`, and `load_file` with one copy, because it only maps the file. Files
  come from the page cache and are not waited for: this is what the adapter adds to the speed of the
  file system, not that of the disk.
- ``plan``: AlphaLoRA's decision and the plan of it, from a list of block scores.

Shown: median and range over repeats, MB/s by the bytes of the weights' file.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from axolotl_alphalora.adapter import AlphaLoraConfig
from axolotl_alphalora.blocks import group_by_block

from .common import SHAPES, machine, make_shape, save, settings, spread, summary
from .contestants import uneven_counts

ADAPTERS = ("LoRA", "AlphaLoRA")
KINDS = ("wrap", "wrap, real", "save", "load", "plan")
WEIGHTS = "adapter_model.safetensors"


def bare(shape: str) -> Any:
    """A bfloat16 model on the meta device."""
    return make_shape(shape, "bf16", "meta").requires_grad_(False)


def hollow(shape: str) -> Any:
    """A model on the CPU whose weights take no memory: each is one number, seen many times."""
    model = bare(shape)
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            number = torch.zeros((), dtype=weight.dtype).expand(weight.shape)
            setattr(module, name, nn.Parameter(number, requires_grad=False))
    return model


def configs(base: Any, options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """How to make the configuration of each adapter; it takes one for each model."""
    rank, width = options.rank, options.experts * options.rank
    counts = uneven_counts(base, options.experts)
    return {
        "LoRA": lambda: LoraConfig(r=width, lora_alpha=2 * width, target_modules="all-linear"),
        "AlphaLoRA": lambda: AlphaLoraConfig(r=rank, lora_alpha=2 * rank, num_experts=counts),
    }


def clock(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a function takes, and what it returns; garbage is collected before."""
    gc.collect()
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


class Times:
    """Seconds by what was done and with what, in the order of the first time."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], list[float]] = {}
        self.bytes: dict[tuple[str, str], int] = {}

    def time(self, doing: str, who: str, work: Callable[[], Any], size: int = 0) -> Any:
        """Time a function and return what it returns; the arguments are those of `add`."""
        seconds, result = clock(work)
        self.add(doing, who, seconds, size)
        return result

    def add(self, doing: str, who: str, seconds: float, size: int = 0) -> None:
        """Note a time.

        Args:
            doing: What was done.
            who: With what.
            seconds: How long it took.
            size: Bytes that it read or wrote, where that counts.
        """
        self.seconds.setdefault((doing, who), []).append(seconds)
        self.bytes[doing, who] = size

    def rows(self) -> list[dict[str, Any]]:
        """``doing``, ``who``, ``seconds`` and, where bytes count, ``mb_per_second``."""
        found = []
        for (doing, who), seconds in self.seconds.items():
            row: dict[str, Any] = {"doing": doing, "who": who, "seconds": summary(seconds)}
            if size := self.bytes[doing, who]:
                row["mb_per_second"] = summary(size / 1e6 / second for second in seconds)
            found.append(row)
        return found


def wrap(name: str, options: argparse.Namespace, times: Times) -> None:
    """Wrap a model on the meta device, with and without drawing weights."""
    for low, who in enumerate((name, f"{name}, low_cpu_mem_usage")):
        base = bare(options.model)
        config = configs(base, options)[name]()
        times.time("wrap", who, partial(get_peft_model, base, config, low_cpu_mem_usage=bool(low)))


def store(name: str, folder: Path, options: argparse.Namespace, times: Times) -> int:
    """Wrap, save and load with real weights, beside the raw bytes; returns their number."""
    base = hollow(options.model)
    config = configs(base, options)[name]()
    model = times.time("wrap, real", name, partial(get_peft_model, base, config))
    seconds, _ = clock(partial(model.save_pretrained, folder))
    size = (folder / WEIGHTS).stat().st_size
    times.add("save", name, seconds, size)
    del model, base
    write = partial(save_file, copied(folder / WEIGHTS), folder / "raw")
    times.time("save", f"{name}, raw", write, size)
    del write
    for low, who in enumerate((name, f"{name}, low_cpu_mem_usage")):
        fresh = hollow(options.model)
        load = partial(PeftModel.from_pretrained, fresh, folder, low_cpu_mem_usage=bool(low))
        times.time("load", who, load, size)
    times.time("load", f"{name}, raw", partial(copied, folder / "raw"), size)
    return size


def copied(file: Path) -> dict[str, torch.Tensor]:
    """A file's tensors, in memory of their own."""
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


def planner(base: Any, options: argparse.Namespace) -> Callable[[], Any]:
    """How to make AlphaLoRA's plan for block scores that rise evenly from 2 to 4.

    Raises:
        ImportError: If what plans need is not installed.
    """
    from axolotl_alphalora.allocation import AllocationRequest, Budget, Evidence, build_plan
    from axolotl_alphalora.planning import Targets

    shapes = Targets(linear=True).resolve(base)
    blocks = list(group_by_block(shapes))
    evidence = Evidence(alphas={b: 2 + 2 * place / len(blocks) for place, b in enumerate(blocks)})
    request = AllocationRequest(
        base_model=options.model,
        budget=Budget(experts_per_block=float(options.experts)),
        rank=options.rank,
    )
    make = partial(build_plan, request, shapes, evidence)
    make()  # finds the strategies, once for a process
    return make


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Do everything ``options.repeats`` times.

    Returns:
        ``machine``, ``settings``, ``modules`` (layers that are wrapped), ``bytes`` (adapter to the
        size of its weights' file; empty with ``--meta-only``), ``rows`` as `Times.rows`, and
        ``no_plan``, why there is none.
    """
    about = machine(("torch", "transformers", "peft", "safetensors"))
    base = bare(options.model)
    times, no_plan = Times(), None
    sizes: dict[str, int] = {}
    try:
        plan = planner(base, options)
    except ImportError as error:
        no_plan = str(error)
    gc.freeze()  # so that looking for garbage takes no time
    for repeat in range(options.repeats):
        for name in ADAPTERS if repeat % 2 else ADAPTERS[::-1]:
            wrap(name, options, times)
            if not options.meta_only:
                with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                    sizes[name] = store(name, Path(folder), options, times)
        if no_plan is None:
            times.time("plan", "AlphaLoRA", plan)
    gc.unfreeze()
    return {
        "benchmark": "startup",
        "machine": about,
        "settings": settings(options),
        "modules": len(uneven_counts(base, options.experts)),
        "bytes": sizes,
        "rows": sorted(times.rows(), key=lambda row: KINDS.index(row["doing"])),
        "no_plan": no_plan,
    }


def report(results: dict[str, Any]) -> None:
    """Print the table."""
    known = results["settings"]
    files = "".join(f"; {size / 1e6:.1f} MB of {name}" for name, size in results["bytes"].items())
    print(results["machine"])
    print(
        f"{known['model']}, {results['modules']} layers, {known['experts']} experts of rank "
        f"{known['rank']} on average{files}; {known['repeats']} repeats"
    )
    if results["no_plan"] is not None:
        print(f"no plan: {results['no_plan']}")
    print(f"{'':<12}{'':<29}{'s':<28}MB/s")
    for row in results["rows"]:
        speed = row.get("mb_per_second")
        print(
            f"{row['doing']:<12}{row['who']:<29}{spread(row['seconds'], 3):<28}"
            f"{'-' if speed is None else spread(speed, 0)}"
        )


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=SHAPES, default="7b")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--meta-only", action="store_true", help="only what takes no memory")
    parser.add_argument("--folder", help="where to save adapters; the usual one for such files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args()
    results = measure(options)
    report(results)
    save(options.json, results)


if __name__ == "__main__":
    main()
