"""Lines of results as the study's bench would have written them, with losses of the test's own."""

import numpy as np

from benchmarks.study.cells import GRID, Setting

HERE = Setting()
LABELS = [10, 20, 30, 40]


def line(method, rate, seed, loss):
    """What is known of a cell with that loss per label."""
    cell = HERE.cell(method, rate, seed)
    wave = np.random.default_rng(seed).normal(0, 0.1, len(LABELS))
    rows = loss * np.array(LABELS) + (wave - wave.mean())
    return {
        "cell": cell.key,
        **cell.as_dict(),
        "parameters": 1000 + len(method),
        "held_out": {
            "loss": loss,
            "by_task": {"gsm8k": loss},
            "rows": list(rows),
            "labels": LABELS,
        },
        "steps": 0 if method == "untrained" else 40,
        "recipe": {"batch": 8},
        "digest": "00ff",
        "routers": {"router_entropy": 0.5, "dead_experts": 0.25} if method == "uniform" else None,
        "others": {"bbh": 3.0 + rate, "text": 4.0 + rate},
        "answered": {"rows": 0, "why": "not asked for"},
        "seconds": {"train": 12.0},
        "peak_mib": 2006,
        "commit": "abc",
    }


def add(done, method, loss, **changes):
    """A whole curve and five seeds of a method."""
    for rate in GRID:
        one = line(method, rate, 0, loss + (rate != GRID[2])) | changes
        done[one["cell"]] = one
    for seed in range(1, 5):
        one = line(method, GRID[2], seed, loss + 0.001 * seed + 0.0005 * (-1) ** seed) | changes
        done[one["cell"]] = one


def scatter(done, method, loss, *offsets, noise=0.0):
    """Give a method five seeds; each one's loss has an offset of its own.

    Args:
        done: Key of a cell to its line; gets the lines.
        method: Which.
        loss: Per label.
        *offsets: What each seed's loss is off.
        noise: By how many nats two rows are off, the one up and the other down.
    """
    add(done, method, loss)
    for seed, offset in enumerate(offsets):
        one = done[HERE.cell(method, GRID[2], seed).key]["held_out"]
        one["loss"] = loss + 0.001 * seed + offset
        one["rows"] = [
            row + offset * labels for row, labels in zip(one["rows"], LABELS, strict=True)
        ]
        one["rows"][0] += noise
        one["rows"][3] -= noise
