"""How far quantisation moves the alphas of SmolLM2-135M.

    python -m benchmarks.quantised [--model DIR]

Every matrix is put into a bitsandbytes layer, nf4 with double quantisation and int8, dequantised
again, and measured beside the original. Printed are the largest difference of a matrix's alpha and
of a block's mean, and the standard deviation of the block means to compare with.
"""

from __future__ import annotations

import argparse
from statistics import pstdev
from typing import Any

from benchmarks.common import machine, smollm2

ESTIMATORS = ("hill", "xmin_peak", "ks")


def main() -> None:
    import torch
    from torch import nn

    from axolotl_alphalora.spectral import BaseModel, LiveWeights, measure
    from axolotl_alphalora.spectral.definition import linear_layers

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="model directory; SmolLM2-135M-Instruct if left out")
    base = BaseModel(parser.parse_args().model or smollm2())
    print(machine(("torch", "bitsandbytes")))
    shapes = base.layers(linear_layers, "benchmark")
    weights = base.weights(shapes)
    plain = measure(weights, shapes)
    print("                    matrix  block   spread of the block means")
    for kind in ("nf4", "int8"):
        holder = nn.Module()
        for name in shapes:
            _place(holder, name, _quantised(weights.tensor(name).to(torch.float32), kind))
        codes = measure(LiveWeights(holder), shapes)
        for estimator in ESTIMATORS:
            _report(f"{kind}, {estimator}", _scored(plain, estimator), _scored(codes, estimator))


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


def _place(holder: Any, name: str, layer: Any) -> None:
    from torch import nn

    *parents, last = name.split(".")
    for parent in parents:
        if not hasattr(holder, parent):
            holder.add_module(parent, nn.Module())
        holder = getattr(holder, parent)
    holder.add_module(last, layer)


def _scored(found: Any, estimator: str) -> tuple[dict[str, float], dict[str, float]]:
    from axolotl_alphalora.spectral import assess, unit_scores

    rows = assess(found.spectra, estimator)
    return {row.module: row.alpha or 0.0 for row in rows}, unit_scores(rows)


def _report(label: str, plain: Any, codes: Any) -> None:
    shifts = [
        max(abs(codes[i][name] - value) for name, value in plain[i].items()) for i in range(2)
    ]
    spread = pstdev(plain[1].values())
    print(f"{label:<18} {shifts[0]:7.4f} {shifts[1]:7.4f} {spread:9.4f}")


if __name__ == "__main__":
    main()
