"""Layer quality of SmolLM2-135M: time, memory, the cache, and weightwatcher on the same matrices.

    python -m benchmarks.spectra [--repeats 5] [--model DIR]

Each figure is the median of fresh processes, with its range. "Beyond imports" takes away what the
process had when torch, transformers and this package were imported. The weightwatcher part runs in
one process: weightwatcher's default analysis of a model that holds the same matrices, and `ks`
here, alternating; the spectra are computed anew each time ("all of it") or are at hand ("the fit",
which is what a second analysis from the cache costs beside reading it).
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
from statistics import median
from typing import Any

from benchmarks.common import in_fresh_process, machine, peak_mib, smollm2, spread

ESTIMATORS = ("xmin_peak", "xmin_peak_published", "hill", "ks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", help="model directory; SmolLM2-135M-Instruct if left out")
    parser.add_argument("--child", choices=sorted(CHILDREN), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(CHILDREN[arguments.child](arguments.model, arguments.repeats)))
        return
    model = arguments.model or smollm2()
    print(machine(("torch", "transformers", "weightwatcher")))
    _report_measuring(model, arguments.repeats)
    _report_cache(model, arguments.repeats)
    _report_weightwatcher(model, arguments.repeats)


def _report_measuring(model: str, repeats: int) -> None:
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
