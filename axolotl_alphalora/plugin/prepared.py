"""The training tokens of data that the host has prepared, counted without importing the host.

Which of several prepared data sets is that of a configuration only the host can tell, and its
imports take longer than a plan: where there is not just one, nothing is said.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..hosts.constants import DATA_FILES, IGNORED
from .host import PREPARED_IN

LARGEST = 256 * 2**20
"""Bytes of prepared data that are read; more takes longer than a plan should."""

_STREAMS = ("streaming", "pretraining_dataset", "skip_prepare_dataset")


@dataclass(frozen=True)
class Prepared:
    """Data that a run would take as it is.

    Attributes:
        folder: Where it lies.
        rows: Training rows, without those that `val_set_size` sets aside.
        tokens: Their tokens that have a label, of one epoch: a mean where rows are set aside, since
            which ones is not known.
    """

    folder: Path
    rows: int
    tokens: int


def prepared_tokens(config: Mapping[str, Any]) -> Prepared | None:
    """Count the training tokens of a configuration's data, where the host has prepared it.

    Args:
        config: The keys of the YAML.

    Returns:
        None where `dataset_prepared_path` does not hold just one prepared data set (`axolotl
        preprocess` makes one), or it is larger than `LARGEST`, or no data of supervised
        fine-tuning.
    """
    if not config.get("datasets") or any(config.get(key) for key in _STREAMS):
        return None
    try:
        places = Path(config.get("dataset_prepared_path") or PREPARED_IN).glob("*/state.json")
        (folder,) = [place.parent for place in places]
        rows, tokens = _count(folder)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    kept = rows - _set_aside(config.get("val_set_size") or 0, rows)
    return Prepared(folder, kept, round(tokens * kept / rows)) if rows and tokens else None


def _count(folder: Path) -> tuple[int, int]:
    """Rows of prepared data, and their tokens that have a label."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    files = [folder / entry["filename"] for entry in state[DATA_FILES]]
    if sum(file.stat().st_size for file in files) > LARGEST:
        raise ValueError(f"{folder} is too large to be counted by the way")
    counts = [(len(labels), trained) for file in files for labels, trained in _labels(file)]
    return sum(rows for rows, _ in counts), sum(tokens for _, tokens in counts)


def _labels(file: Path) -> Iterable[tuple[Any, int]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    with pa.memory_map(str(file)) as source:
        for batch in pa.ipc.open_stream(source):
            labels = batch.column("labels")
            yield labels, pc.sum(pc.not_equal(labels.flatten(), IGNORED)).as_py() or 0


def _set_aside(size: float, rows: int) -> int:
    return round(size * rows) if size < 1 else min(int(size), rows)
