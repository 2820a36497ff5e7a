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
