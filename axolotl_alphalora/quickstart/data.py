"""The quickstart's instruction data: generated, seeded, the same bytes on every machine."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from axolotl_alphalora.files import write_whole
from axolotl_alphalora.quickstart.files import digest
from axolotl_alphalora.quickstart.skills import SKILLS

TRAIN_FILE = "train.jsonl"
HELD_OUT_FILE = "held_out.jsonl"
TRAIN_ROWS_PER_SKILL = 40
HELD_OUT_ROWS_PER_SKILL = 6
SEED = 20240923

Row = dict[str, str]


def make_rows(seed: int = SEED) -> tuple[list[Row], list[Row]]:
    """Draw the training and held-out rows; no prompt is in both.

    Args:
        seed: Seed of the draw.

    Returns:
        Training and held-out rows with the keys `instruction`, `input`, `output` and `task`, the
        tasks taking turns.
    """
    size = TRAIN_ROWS_PER_SKILL + HELD_OUT_ROWS_PER_SKILL
    columns = [_draw(task, size, seed) for task in SKILLS]
    rows = [list(turn) for turn in zip(*columns, strict=True)]
    held_out = [row for turn in rows[:HELD_OUT_ROWS_PER_SKILL] for row in turn]
    train = [row for turn in rows[HELD_OUT_ROWS_PER_SKILL:] for row in turn]
    return train, held_out


def write_data(directory: Path) -> str:
    """Write the two JSONL files where they are missing.

    A file that exists is kept, so that rows which a user edited or added survive.

    Args:
        directory: Where `train.jsonl` and `held_out.jsonl` go; it must exist.

    Returns:
        Digest of the two files as they now are.
    """
    paths = [directory / name for name in (TRAIN_FILE, HELD_OUT_FILE)]
    for path, rows in zip(paths, make_rows(), strict=True):
        if not path.exists():
            write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
    return digest(*(path.read_bytes() for path in paths))


def _draw(task: str, size: int, seed: int) -> list[Row]:
    random = Random(f"{seed}/{task}")
    rows: dict[tuple[str, str], Row] = {}
    while len(rows) < size:
        instruction, text, answer = SKILLS[task](random)
        rows[instruction, text] = {
            "instruction": instruction,
            "input": text,
            "output": answer,
            "task": task,
        }
    return list(rows.values())
