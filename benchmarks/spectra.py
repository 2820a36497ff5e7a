"""What does layer quality cost: time, memory, the cache, and weightwatcher on the same matrices?

    python -m benchmarks.spectra [--repeats 5] [--model DIR]
    python -m benchmarks.spectra --model 7b --blocks 1      # random weights in LLaMA-2-7B's shapes
    python -m benchmarks.spectra --quantised                # how far nf4 and int8 move the alphas

Each figure is the median of fresh processes, with its range. "Beyond imports" takes away what the
process had when torch, transformers and this package were imported. The weightwatcher part runs in
one process: weightwatcher's default analysis of a model that holds the same matrices, and `ks`
here, alternating; the spectra are computed anew each time ("all of it") or are at hand ("the fit",
which is what a second analysis from the cache costs beside reading it). Of random weights only the
spectra and fits are measured, by default on one block on a CPU and on all on a GPU; what all would
take is an extrapolation and is printed as one. `--quantised` puts every matrix into a
bitsandbytes layer, dequantises it again and measures it beside the original: the largest difference
of a matrix's alpha and of a block's mean, and the standard deviation of the block means to compare
with.
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
from statistics import median, pstdev
from typing import Any

from .common import SHAPES, in_fresh_process, machine, peak_mib, shape_config, smollm2, spread

ESTIMATORS = ("xmin_peak", "xmin_peak_published", "hill", "ks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", help="directory or shape; SmolLM2-135M-Instruct if left out")
    parser.add_argument("--blocks", type=int, help="of a shape")
    parser.add_argument("--quantised", action="store_true")
    parser.add_argument("--child", choices=sorted(CHILDREN), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(CHILDREN[arguments.child](arguments.model, arguments.repeats)))
        return
    print(machine(("torch", "transformers", "weightwatcher")))
    if arguments.model in SHAPES:
        _report_shape(arguments.model, arguments.blocks, arguments.repeats)
        return
    model = arguments.model or smollm2()
    if arguments.quantised:
        _report_quantised(model)
        return
    _report_measuring(model, arguments.repeats)
    _report_cache(model, arguments.repeats)
    _report_weightwatcher(model, arguments.repeats)


def _report_shape(shape: str, blocks: int | None, repeats: int) -> None:
    import torch
    from transformers import LlamaForCausalLM

    config = shape_config(shape)
    whole = config.num_hidden_layers
    blocks = blocks or (whole if torch.cuda.is_available() else 1)
    config.num_hidden_layers, config.dtype = blocks, torch.bfloat16
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        runs = _report_measuring(folder, repeats)
    seconds = [(run["spectra"] + run["fits"]["xmin_peak"]) / blocks for run in runs]
    print(f"  a block of {shape}, xmin_peak{'':<16} {spread(seconds)} s")
    if blocks < whole:
        minutes = [second * whole / 60 for second in seconds]
        print(f"  {whole} blocks, extrapolated              {spread(minutes)} min")


def _report_measuring(model: str, repeats: int) -> list[dict[str, Any]]:
    runs = [_child("measure", model) for _ in range(repeats)]
    first = runs[0]
    print(f"\n{first['matrices']} matrices, nothing cached, {repeats} processes")
    print(f"  layers from transformers' definition  {spread([r['layers'] for r in runs])} s")
    print(f"  spectra                               {spread([r['spectra'] for r in runs])} s")
    for name in ESTIMATORS:
        print(f"  fits, {name:<31} {spread([r['fits'][name] for r in runs], 3)} s")
    total = [r["spectra"] + sum(r["fits"].values()) for r in runs]
    print(f"  spectra and all four fits             {spread(total)} s")
    print(f"  peak memory beyond imports            {spread([r['memory'] for r in runs], 0)} MiB")
    if first["gpu_memory"]:
        print(f"  peak GPU memory                       {first['gpu_memory']:.0f} MiB")
    return runs


def _report_cache(model: str, repeats: int) -> None:
    torch_alone, plans = [], []
    with tempfile.TemporaryDirectory() as folder:
        environment = {"ALPHALORA_CACHE": folder}
        _timed_plan(model, folder, "xmin_peak", 2.5, environment)
        for repeat in range(repeats):
            torch_alone.append(_timed([sys.executable, "-c", "import torch"], environment))
            estimator = ESTIMATORS[repeat % len(ESTIMATORS)]
            plans.append(_timed_plan(model, folder, estimator, 1 + repeat, environment))
    beyond = [plan - alone for plan, alone in zip(plans, torch_alone, strict=True)]
    print(f"\nSecond plan, other estimator and beta, spectra cached, {repeats} pairs of processes")
    print(f"  alphalora plan config.yml             {spread(plans)} s")
    print(f"  python -c 'import torch'              {spread(torch_alone)} s")
    print(f"  difference                            {spread(beyond)} s")


def _report_weightwatcher(model: str, repeats: int) -> None:
    found = _child("weightwatcher", model, repeats)
    theirs, ours, fits = found["weightwatcher"], found["all"], found["fit"]
    print(f"\nks against weightwatcher's analysis, one process, {repeats} rounds")
    print(f"  weightwatcher                         {spread(theirs)} s")
    print(f"  ks, all of it                         {spread(ours)} s")
    print(f"  ks, the fit                           {spread(fits, 3)} s")
    print(f"  weightwatcher / all of ks             {median(theirs) / median(ours):.1f}")
    print(f"  weightwatcher / the fit               {median(theirs) / median(fits):.0f}")
    print(f"  largest difference of the alphas      {found['difference']:.1e}")


def _measure(model: str, repeats: int) -> dict[str, Any]:
    import torch
    import transformers.core_model_loading  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401

    from axolotl_alphalora.spectral import BaseModel, assess, read_spectra
    from axolotl_alphalora.spectral.definition import linear_layers

    before = peak_mib()
    start = time.perf_counter()
    base = BaseModel(model)
    shapes = base.layers(linear_layers, "benchmark")
    weights = base.weights(shapes)
    layers = time.perf_counter() - start
    start = time.perf_counter()
    spectra = read_spectra(weights, shapes)
    seconds = time.perf_counter() - start
    fits = {}
    for name in ESTIMATORS:
        start = time.perf_counter()
        assess(spectra, name)
        fits[name] = time.perf_counter() - start
    return {
        "matrices": len(shapes),
        "layers": layers,
        "spectra": seconds,
        "fits": fits,
        "memory": peak_mib() - before,
        "gpu_memory": torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0,
    }


def _weightwatcher(model: str, repeats: int) -> dict[str, Any]:
    import logging

    import torch
    from torch import nn

    from axolotl_alphalora.spectral import BaseModel, assess, read_spectra
    from axolotl_alphalora.spectral.definition import linear_layers

    import weightwatcher  # isort: skip

    logging.disable(logging.WARNING)
    base = BaseModel(model)
    shapes = base.layers(linear_layers, "benchmark")
    weights = base.weights(shapes)
    holder = nn.ModuleList()
    for name, (rows, columns) in shapes.items():
        layer = nn.Linear(columns, rows, bias=False)
        layer.weight = nn.Parameter(weights.tensor(name).float())
        holder.append(layer)
    times: dict[str, list[float]] = {"weightwatcher": [], "all": [], "fit": []}
    difference = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        answer = weightwatcher.WeightWatcher(model=holder).analyze()
        times["weightwatcher"].append(time.perf_counter() - start)
        start = time.perf_counter()
        spectra = read_spectra(weights, shapes)
        read = time.perf_counter()
        rows = assess(spectra, "ks")
        times["fit"].append(time.perf_counter() - read)
        times["all"].append(time.perf_counter() - start)
        theirs = torch.tensor(answer.sort_values("layer_id")["alpha"].to_numpy())
        ours = torch.tensor([row.alpha for row in rows], dtype=torch.float64)
        difference = max(difference, float((theirs - ours).abs().max()))
    return {**times, "difference": difference}


def _report_quantised(model: str) -> None:
    import torch
    from torch import nn

    from axolotl_alphalora.spectral import BaseModel, LiveWeights, assess, measure, unit_scores
    from axolotl_alphalora.spectral.definition import linear_layers

    base = BaseModel(model)
    shapes = base.layers(linear_layers, "benchmark")
    weights = base.weights(shapes)
    plain = measure(weights, shapes)
    print(f"\n{'':<19}matrix  block   spread of the block means")
    for kind in ("nf4", "int8"):
        holder = nn.Module()
        for name in shapes:
            *parents, last = name.split(".")
            place = holder
            for parent in parents:
                if not hasattr(place, parent):
                    place.add_module(parent, nn.Module())
                place = getattr(place, parent)
            place.add_module(last, _quantised(weights.tensor(name).to(torch.float32), kind))
        codes = measure(LiveWeights(holder), shapes)
        for estimator in ("hill", "xmin_peak", "ks"):
            rows = [assess(found.spectra, estimator) for found in (plain, codes)]
            alphas = [{row.module: row.alpha or 0.0 for row in of} for of in rows]
            blocks = [unit_scores(of) for of in rows]
            moved = [max(abs(b[k] - v) for k, v in a.items()) for a, b in (alphas, blocks)]
            label, spread_of = f"{kind}, {estimator}", pstdev(blocks[0].values())
            print(f"{label:<18} {moved[0]:7.4f} {moved[1]:7.4f} {spread_of:9.4f}")


def _quantised(weight: Any, kind: str) -> Any:
    import bitsandbytes as bnb

    rows, columns = weight.shape
    if kind == "nf4":
        layer = bnb.nn.Linear4bit(
            columns, rows, bias=False, quant_type="nf4", compress_statistics=True
        )
    else:
        layer = bnb.nn.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False)
    layer.load_state_dict({"weight": weight})
    return layer.to("cpu")


CHILDREN = {"measure": _measure, "weightwatcher": _weightwatcher}


def _child(what: str, model: str, repeats: int = 1) -> dict[str, Any]:
    arguments = ["--child", what, "--model", model, "--repeats", str(repeats)]
    return in_fresh_process("benchmarks.spectra", *arguments, HF_HUB_OFFLINE="1")


def _timed_plan(
    model: str, folder: str, estimator: str, beta: float, environment: dict[str, str]
) -> float:
    config = Path(folder) / "config.yml"
    config.write_text(
        f"base_model: {model}\nlora_target_linear: true\nalphalora:\n"
        f"  allocation: {{strategy: alphalora, estimator: {estimator}, beta: {beta}}}\n"
    )
    program = "from axolotl_alphalora.cli import alphalora; alphalora()"
    return _timed([sys.executable, "-c", program, "plan", str(config)], environment)


def _timed(command: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(
        command,
        env={**os.environ, **environment, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
