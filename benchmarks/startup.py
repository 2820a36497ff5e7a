"""What does it take to start: wrap a model, save and load the adapter, share out experts?

    python -m benchmarks.startup --model 7b --experts 8 --repeats 5
    python -m benchmarks.startup --meta-only      # no memory, no files

AlphaLoRA with numbers of experts that grow from block to block, their mean `--experts`, beside a
PEFT LoRA of rank experts x r, in one process and in turn. With the defaults that is a model of
LLaMA-2-7B's shape, 224 linear layers, and 160 million parameters in an adapter.

- `wrap`: `get_peft_model` on a base on the meta device. PEFT puts an adapter where its base is:
  the weights are drawn, layer by layer, and let go; `low_cpu_mem_usage` draws none.
- `wrap, real`: the same on a base on the CPU whose weights are views of single numbers, so that
  only the adapter takes memory. `save` is `save_pretrained` of that model, `load`
  `PeftModel.from_pretrained` onto a fresh base, which is not timed. Beside them the same bytes raw:
  `safetensors.torch.save_file`, and `load_file` with one copy, because it only maps the file. Files
  come from the page cache and are not waited for: this is what the adapter adds to the speed of the
  file system, not that of the disk.
- `plan`: AlphaLoRA's decision and the plan of it, from a list of block scores.

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

from .common import SHAPES, machine, make_shape, spread
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


class Times:
    """Seconds by what was done and with what, and the bytes that it read or wrote, if any."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], list[float]] = {}
        self.bytes: dict[tuple[str, str], int] = {}

    def time(self, doing: str, who: str, work: Callable[[], Any], size: int = 0) -> Any:
        """Time a function and return what it returns; garbage is collected before."""
        gc.collect()
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        self.seconds.setdefault((doing, who), []).append(seconds)
        self.bytes[doing, who] = size
        return result

    def report(self) -> None:
        """Print the table."""
        print(f"{'':<12}{'':<29}{'s':<28}MB/s")
        for key, seconds in sorted(self.seconds.items(), key=lambda row: KINDS.index(row[0][0])):
            size = self.bytes[key]
            speed = spread([size / 1e6 / second for second in seconds], 0) if size else "-"
            print(f"{key[0]:<12}{key[1]:<29}{spread(seconds, 3):<28}{speed}")


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
    times.time("save", name, partial(model.save_pretrained, folder))
    size = times.bytes["save", name] = (folder / WEIGHTS).stat().st_size
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
    """How to make AlphaLoRA's plan for block scores that rise evenly from 2 to 4."""
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


def main() -> None:
    """Do everything as often as asked for, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=SHAPES, default="7b")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--meta-only", action="store_true", help="only what takes no memory")
    parser.add_argument("--folder", help="where to save adapters; the usual one for such files")
    options = parser.parse_args()
    print(machine(("torch", "transformers", "peft", "safetensors")))
    base, times, sizes = bare(options.model), Times(), dict[str, int]()
    plan = planner(base, options)
    gc.freeze()  # so that looking for garbage takes no time
    for repeat in range(options.repeats):
        for name in ADAPTERS if repeat % 2 else ADAPTERS[::-1]:
            wrap(name, options, times)
            if not options.meta_only:
                with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                    sizes[name] = store(name, Path(folder), options, times)
        times.time("plan", "AlphaLoRA", plan)
    gc.unfreeze()
    layers = len(uneven_counts(base, options.experts))
    files = "".join(f"; {size / 1e6:.1f} MB of {name}" for name, size in sizes.items())
    print(
        f"{options.model}, {layers} layers, {options.experts} experts of rank {options.rank} on "
        f"average{files}; {options.repeats} repeats"
    )
    times.report()


if __name__ == "__main__":
    main()
