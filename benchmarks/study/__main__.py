"""The study's bench: does it help?

    python -m benchmarks.study run --hours 8 --data DIR [--cells '*/gsm8k/*'] [--threads 2]
    python -m benchmarks.study list
    python -m benchmarks.study report

`run` trains the next cell that is not done, appends one line to the results, and goes on until the
hours are over; killed at any point it loses the cell that it is at. `docs/study.md` says what is
compared and what has come of it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from . import results
from .cells import Cell, Line, table
from .devices import DEVICES, here

ROOT = Path(__file__).parents[2]


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("do", choices=("run", "list", "report"))
    parser.add_argument("--hours", type=float, default=1.0, help="start no cell after that long")
    parser.add_argument("--data", type=Path, help="directory of the data (or STUDY_DATA)")
    parser.add_argument("--cells", default="*", help="a pattern for the keys of cells")
    parser.add_argument("--device", choices=DEVICES, help="the fastest here, if not given")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--answers", type=int, help="held-out rows to answer (on a CPU gsm8k: 0)")
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    options = parser.parse_args(arguments)
    try:
        {"run": run, "list": show, "report": report}[options.do](options)
    except ValueError as error:
        sys.exit(str(error))


def run(options: argparse.Namespace) -> None:
    """Run cells until the hours are over or none is left."""
    import torch

    from . import bases, methods
    from .rows import SETS, read
    from .run import run_cell

    start, skipped, named = time.monotonic(), set[str](), set[str]()
    torch.set_num_threads(options.threads)
    data = options.data or Path(os.environ.get("STUDY_DATA") or ".")
    for name in SETS:
        for split in ("train", "test"):
            read(name, split, data)
    with results.locked(options.results):
        while time.monotonic() - start < options.hours * 3600:
            cell = _next(options, skipped)
            if cell is None:
                print("no cell is left", flush=True)
                return
            what, reason = cell.method, methods.why_not(cell.method)
            if reason is None:
                what, reason = cell.base, bases.why_not(cell.base)
            if reason is not None:
                if what not in named:
                    print(f"skipped {what}: {reason}", flush=True)
                named.add(what)
                skipped.add(cell.key)
                continue
            print(f"{cell.key} ...", flush=True)
            try:
                line = run_cell(cell, data, options.threads, options.answers)
            except Exception:  # what one method cannot do must not keep the others waiting
                traceback.print_exc()
                print(f"failed {cell.key}, see above; left for another run", flush=True)
                skipped.add(cell.key)
                continue
            results.append(line, options.results)
            seconds = sum(line["seconds"].values())
            print(f"  held-out loss {line['held_out']['loss']:.5f}, {seconds:.0f} s", flush=True)


def _next(options: argparse.Namespace, skipped: set[str]) -> Cell | None:
    done = results.read(options.results)
    cells = _wanted(options, done)
    return next((c for c in cells if c.key not in done and c.key not in skipped), None)


def _wanted(options: argparse.Namespace, done: Mapping[str, Line]) -> list[Cell]:
    cells = [
        cell
        for cell in table(done, options.device or here())
        if fnmatchcase(cell.key, options.cells)
    ]
    if not cells:
        raise ValueError(
            f"--cells {options.cells}: no cell is called so; `list` prints those that are known "
            "by now"
        )
    return cells


def show(options: argparse.Namespace) -> None:
    """Print the cells that are known by now."""
    from .methods import why_not

    done = results.read(options.results)
    cells = _wanted(options, done)
    for cell in cells:
        if cell.key in done:
            state = f"{done[cell.key]['held_out']['loss']:.5f}"
        else:
            state = "to do" if why_not(cell.method) is None else "not yet possible"
        print(f"{state:<18}{cell.key}")
    print(f"{sum(cell.key in done for cell in cells)} of {len(cells)} cells are done")


def report(options: argparse.Namespace) -> None:
    """Write the tables and pictures of the page, and what the package says of the study."""
    from .conclusions import write_findings
    from .report import write_pictures

    if options.results != results.RESULTS:
        raise ValueError("`report` writes the page, which is about the study's own results")
    write_pictures()
    write_findings()
    subprocess.run([sys.executable, ROOT / "docs" / "generate.py"], check=True)


if __name__ == "__main__":
    main()
