"""How the cost of a training step grows with experts, rank and sequence length.

    python -m benchmarks.scaling --model path/to/model --repeats 5
    python -m benchmarks.scaling --model 7b --nf4 --batch 1 --checkpointing --axes length

Along one axis at a time, from ``--experts`` (5) of ``--rank`` (8) and ``--length`` (512) tokens:
at every point of the axis the steps of `benchmarks.training_step` with no adapter, with AlphaLoRA,
and with a PEFT LoRA of rank experts x r, each in turn. Shown: for each point the median and range
of a step, and of what it takes beyond the step without an adapter that was taken in the same turn.
Under the points of an axis: the slope of the straight line through those differences with the
least squares, as a share of the step without an adapter at the axis' first point, for one more
expert, for one more of rank, and for 1,000 more tokens; its median and range over repeats.
"""

from __future__ import annotations

import argparse
from typing import Any

from .common import command_line, machine, parsed, save, settings, spread, summary
from .entrants import Field
from .measures import Steps, differences, in_turn, slope
from .training_step import apart, described, step_options

AXES = {"experts": ("expert", 1), "rank": ("of rank", 1), "length": ("thousand tokens", 1000)}
"""What a slope is for, and how much of the axis that is."""
MEASURED = {"AlphaLoRA": "experts", "LoRA": "lora-equal"}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Take the steps of every axis.

    Args:
        options: What the command line gives.

    Returns:
        ``machine``, ``settings``, and ``axes``: for each axis ``points``, a list with ``at`` and
        for each model the summaries (`benchmarks.common.summary`) ``seconds`` and
        ``more_than_none``; and ``slopes``, for each model a summary.
    """
    about = machine(("torch", "transformers", "peft", "bitsandbytes"))
    found = {}
    with Field(options, separate=apart(options)) as field:
        for axis in options.axes:
            found[axis] = measure_axis(axis, getattr(options, f"{axis}_points"), field, options)
    return {
        "benchmark": "scaling",
        "machine": about,
        "settings": settings(options),
        "axes": found,
    }


def measure_axis(
    axis: str, points: list[int], field: Field, options: argparse.Namespace
) -> dict[str, Any]:
    """Take the steps of one axis, see `measure`."""
    names = {"none": "none", **MEASURED}
    rows, first = [], list[float]()
    more: dict[str, list[list[float]]] = {model: [] for model in MEASURED}
    for point in points:
        here = argparse.Namespace(**{**vars(options), axis: point})
        runs: dict[str, Steps] = {
            model: field.enter(name, here, counting=False)[1] for model, name in names.items()
        }
        in_turn(runs, 2)  # warms up
        times = in_turn(runs, options.repeats)
        runs.clear()
        field.clear()
        first = first or times["none"]
        row: dict[str, Any] = {"at": point, "none": {"seconds": summary(times["none"])}}
        for model in MEASURED:
            more[model].append(differences(times[model], times["none"]))
            row[model] = {
                "seconds": summary(times[model]),
                "more_than_none": summary(more[model][-1]),
            }
        rows.append(row)
    slopes = {}
    for model in MEASURED if len(points) > 1 else ():
        turns = zip(*more[model], strict=True)
        slopes[model] = summary(
            slope(points, turn) / none for turn, none in zip(turns, first, strict=True)
        )
    return {"points": rows, "slopes": slopes}


def report(results: dict[str, Any]) -> None:
    """Print a table for each axis."""
    for axis, found in results["axes"].items():
        print(f"\n{axis:<9}{'':<11}{'s a step':<26}over none, s")
        for row in found["points"]:
            print(f"{row['at']:<9}{'none':<11}{spread(row['none']['seconds'], 3)}")
            for model in MEASURED:
                seconds, more = row[model]["seconds"], row[model]["more_than_none"]
                print(f"{row['at']:<9}{model:<11}{spread(seconds, 3):<26}{spread(more, 3)}")
        unit, amount = AXES[axis]
        of = f"% of the first step without, for one more {unit}"
        for model, shares in found["slopes"].items():
            percent = spread([100 * amount * share for share in shares["values"]])
            print(f"{'slope':<9}{model:<11}{percent} {of}")


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = command_line(__doc__)
    step_options(parser)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--experts-points", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rank-points", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument(
        "--length-points",
        type=int,
        nargs="+",
        help="128 to 1024 tokens in doublings, 512 to 8192 on a GPU",
    )
    options = parsed(parser)
    if options.length_points is None:
        first = 128 if options.device == "cpu" else 512
        last = 1024 if options.device == "cpu" else 8192
        options.length_points = [first << n for n in range((last // first).bit_length())]
    results = measure(options)
    print(results["machine"])
    print(described(options, str(options.length)))
    report(results)
    save(options.json, results)


if __name__ == "__main__":
    main()
