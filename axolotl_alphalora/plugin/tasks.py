"""The raw rows of the run's `datasets:`, the task of each row, and how the host tokenises some."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

COLUMN = "task"

_DETAILS = ("path", "data_files", "split", "type", "revision", "shards_idx")


@dataclass(frozen=True)
class Entry:
    """A part of `datasets:` that the host loads on its own.

    Attributes:
        name: What tells its entry of `datasets:` from the others, for a reader.
        config: The entry, as the host's loaders take it.
        rows: Its raw rows, after `split`, `shards` and `weight`.
    """

    name: str
    config: Any
    rows: Dataset


def load_entries(cfg: Any) -> list[Entry]:
    """Load the raw rows of every entry of `datasets:` as the host does, without tokenising.

    Args:
        cfg: The host's validated configuration.

    Returns:
        The entries in the YAML's order. An entry with several `name`s counts as several; one with
        `preprocess_shards` has a part for each shard, all with the same name.
    """
    from .host import DictDefault, datasets_with_name_generator

    sources = [
        DictDefault({**entry, "name": name})
        for entry in cfg.datasets
        for name in (entry.name if isinstance(entry.name, list) else [entry.name])
    ]
    return [
        Entry(name, part, _load_rows(part, cfg))
        for name, source in zip(entry_names(sources), sources, strict=True)
        for part in datasets_with_name_generator([source])
    ]


def _load_rows(config: Any, cfg: Any) -> Dataset:
    from datasets import DatasetDict

    from .host import load_dataset_with_config

    rows = load_dataset_with_config(config, cfg.hf_use_auth_token)
    if isinstance(rows, DatasetDict):
        rows = rows[config.split if config.split in rows else "train"]
    if config.shards:
        rows = rows.shuffle(seed=cfg.seed).shard(
            num_shards=config.shards, index=config.get("shards_idx", 0)
        )
    if config.weight is not None and config.weight < 1 and len(rows):
        kept = max(1, int(len(rows) * config.weight))
        rows = rows.shuffle(seed=cfg.seed).select(range(kept))
    return rows


def entry_names(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name entries of `datasets:` for a reader.

    Args:
        configs: The entries.

    Returns:
        A different name for each: the file's or folder's own name, or the hub's, with `:name` where
        the entry has one; in brackets whatever of path, data files, split, type, revision and
        shard it takes to tell equal names apart, and a number where all of these are equal.
    """
    names = [_short_name(config) for config in configs]
    for key in _DETAILS:
        details = [_text(config.get(key)) for config in configs]
        variants = defaultdict(set)
        for name, detail in zip(names, details, strict=True):
            variants[name].add(detail)
        names = [
            f"{name} ({key}: {detail})" if len(variants[name]) > 1 else name
            for name, detail in zip(names, details, strict=True)
        ]
    count, seen = Counter(names), Counter[str]()
    for index, name in enumerate(names):
        if count[name] > 1:
            seen[name] += 1
            names[index] = f"{name} #{seen[name]}"
    return names


def _short_name(config: Mapping[str, Any]) -> str:
    path = str(config["path"])
    name = Path(path).resolve().name if Path(path).exists() else path
    return f"{name}:{config['name']}" if config.get("name") else name


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "custom" if isinstance(value, Mapping) else str(value)


def rows_by_task(entries: Sequence[Entry]) -> dict[str, np.ndarray]:
    """Sort the rows of all entries by task.

    A raw column `task` names the task of each row; rows of an entry without one belong to a task
    named after the entry. Equal names are one task, whichever entries they come from.

    Args:
        entries: The run's raw rows.

    Returns:
        Task to an int64 array [rows, 2] of the entry's index and the row's index in it; tasks in
        order of their first row.

    Raises:
        ValueError: If a row has no value in a `task` column, or one that is no text or number.
    """
    found: defaultdict[str, list[np.ndarray]] = defaultdict(list)
    for index, entry in enumerate(entries):
        if COLUMN in entry.rows.column_names:
            groups = _group(_task_values(entry))
        else:
            groups = _group([entry.name] * len(entry.rows))
        for task, rows in groups.items():
            pairs = np.empty((len(rows), 2), dtype=np.int64)
            pairs[:, 0], pairs[:, 1] = index, rows
            found[task].append(pairs)
    return {task: np.concatenate(parts) for task, parts in found.items()}


def _group(values: Iterable[str]) -> dict[str, list[int]]:
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for row, value in enumerate(values):
        groups[value].append(row)
    return groups


def _task_values(entry: Entry) -> list[str]:
    from datasets import ClassLabel

    values = entry.rows.select_columns(COLUMN)[:][COLUMN]
    feature = entry.rows.features[COLUMN]
    if isinstance(feature, ClassLabel):
        values = [None if value is None else feature.int2str(value) for value in values]
    texts = ["" if value is None else str(value) for value in values]
    missing = sum(not text.strip() for text in texts)
    if missing:
        raise ValueError(
            f"{missing} of {len(texts)} rows of the dataset {entry.name} have no value in their "
            f"column `{COLUMN}`, which names the task of a row. Fill the column in, or rename it "
            "if it means something else."
        )
    odd = next((v for v in values if not isinstance(v, str | int | float)), None)
    if odd is not None:
        raise ValueError(
            f"The column `{COLUMN}` of the dataset {entry.name} holds {type(odd).__name__} values, "
            "but it names the task of a row: give it text or numbers, or rename it if it means "
            "something else."
        )
    return texts


def tokenize(
    entry: Entry, indices: Sequence[int], tokenizer: Any, cfg: Any
) -> list[tuple[list[int], list[int]]]:
    """Tokenise some rows of an entry as the host does the whole of it, in this process.

    Args:
        entry: The entry.
        indices: Which of its rows.
        tokenizer: The run's tokenizer.
        cfg: The host's validated configuration.

    Returns:
        Token ids and labels of each training row: fewer than the raw rows where the host drops
        some (by the dataset's type or by length), more where it cuts long ones into pieces.
    """
    from datasets import Dataset, DatasetInfo

    from .host import DictDefault, get_dataset_wrapper, handle_long_seq_in_dataset
    from .host import parse_dataset_type as _parse_dataset_type

    # A handful of rows is worth no worker processes; in memory it leaves no files in the cache.
    alone = DictDefault({**cfg, "dataset_num_proc": None})
    rows = Dataset(
        entry.rows.select(indices).with_format("arrow")[:],
        info=DatasetInfo(features=entry.rows.features),
    )
    base_type, style = _parse_dataset_type(entry.config.type)
    with _quiet():
        dataset, _ = get_dataset_wrapper(
            dataset_config=DictDefault(entry.config),
            tokenizer=tokenizer,
            cfg=alone,
            dataset_base_type=base_type,
            dataset=rows,
            dataset_prompt_style=style,
        )
        if "input_ids" not in dataset.column_names:
            return []
        dataset = handle_long_seq_in_dataset(dataset, cfg.sequence_len, alone)
    return list(zip(dataset["input_ids"], dataset["labels"], strict=True))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the host from reporting on a handful of rows as on a whole dataset."""
    from datasets.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    logger = logging.getLogger("axolotl")
    level, hidden = logger.level, are_progress_bars_disabled()
    logger.setLevel(logging.WARNING)
    disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not hidden:
            enable_progress_bars()
