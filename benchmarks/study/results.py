"""The file of results: one JSON line for each cell, appended whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .cells import Cell, Line, Setting, table
from .devices import DEVICES

Done = Mapping[str, Line]
"""Key of a cell to its line."""

RESULTS = Path(__file__).with_name("results.jsonl")


def read(path: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Key of a cell to its line; a last line without an end was cut short and is left out.

    Raises:
        ValueError: If a line is no JSON, or two are of one cell; says which.
    """
    found: dict[str, dict[str, Any]] = {}
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            value = json.loads(line)
            key = value["cell"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is no result: {error!r}") from error
        if key in found:
            raise ValueError(f"{path}, line {number}: the cell {key} is there twice")
        found[key] = value
    return found


def append(line: dict[str, Any], path: Path = RESULTS) -> None:
    """Add a line and have it on the disk; what an earlier write left half done is cut off."""
    data = (json.dumps(line, ensure_ascii=False) + "\n").encode()
    with path.open("a+b") as file:
        file.seek(0)
        whole = file.read()
        file.truncate(whole.rfind(b"\n") + 1)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def locked(path: Path = RESULTS) -> Iterator[None]:
    """Keep other runs away from a file of results; the lock goes with the process.

    Raises:
        ValueError: If another run has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run writes to {path}: wait, or give --results") from None
        yield


def settings(done: Done) -> list[Setting]:
    """The settings that have a line, in the order of the table, CPU first."""
    known = dict.fromkeys(cell for device in DEVICES for cell in table(done, device))
    cells = [*known, *(Cell.of(line) for line in done.values())]
    run = {(line["base"], line["data"], line["rows"], line["device"]) for line in done.values()}
    found = dict.fromkeys((cell.base, cell.data, cell.rows, cell.device) for cell in cells)
    return [Setting(*one) for one in found if one in run]


def main(done: Done) -> Setting:
    """The setting of the first questions, on the device where most of it was run."""
    known = [Setting(device=device) for device in DEVICES]
    return max(known, key=lambda setting: sum(is_in(line, setting) for line in done.values()))


def is_in(line: Line, setting: Setting) -> bool:
    """Whether a line is of a setting."""
    own = (setting.base, setting.data, setting.rows, setting.device)
    return own == (line["base"], line["data"], line["rows"], line["device"])
