"""The run's data: its raw rows, their tasks, how the host tokenises some, and what it prepared."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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

    from .host import (
        DictDefault,
        get_dataset_wrapper,
        handle_long_seq_in_dataset,
        parse_dataset_type,
    )

    # A handful of rows is worth no worker processes; in memory it leaves no files in the cache.
    alone = DictDefault({**cfg, "dataset_num_proc": None})
    rows = Dataset(
        entry.rows.select(indices).with_format("arrow")[:],
        info=DatasetInfo(features=entry.rows.features),
    )
    base_type, style = parse_dataset_type(entry.config.type)
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


_BATCH = 10_000


def load_tokenizer(cfg: Any) -> Any:
    """Load the run's tokenizer, from a single process of a launch if need be.

    With `added_tokens_overrides` the host's loader writes a changed tokenizer into `output_dir`
    and then waits for every rank. In a launch of several processes the host has written it before
    it loads the model, so it is read from there and no rank is waited for.

    Args:
        cfg: The host's validated configuration.

    Returns:
        The tokenizer that the host's datasets are tokenised with.
    """
    from .host import DictDefault, is_distributed
    from .host import load_tokenizer as load

    if cfg.added_tokens_overrides and is_distributed():
        written = str(Path(cfg.output_dir) / "tokenizer")
        changes = {"added_tokens_overrides": None, "tokenizer_config": written}
        return load(DictDefault({**cfg, **changes}))
    return load(cfg)


def load_splits(cfg: Any, tokenizer: Any) -> tuple[Dataset, Dataset | None]:
    """Load the run's training rows, and its validation rows (`val_set_size`, `test_datasets`).

    Inside a run the host has prepared its datasets already, and this maps its cache on disk into
    memory. Before a run it is the preparation itself, which tokenises everything once and leaves
    it for the run; which rows end up in the validation split cannot be known for less. With
    `dataset_exact_deduplication` the host also looks for duplicates anew at every load.

    Only the host's file lock is taken, which a process holds while it loads and without waiting
    for another, so one rank alone may call this.

    Args:
        cfg: The host's validated configuration.
        tokenizer: The run's tokenizer.

    Returns:
        The training and the validation dataset; None where the run has none.
    """
    from .host import FileLockLoader, load_and_prepare_datasets

    def splits() -> tuple[Dataset, Dataset | None]:
        train, validation, _ = load_and_prepare_datasets(tokenizer, cfg)
        if cfg.test_datasets:
            _, validation, _ = load_and_prepare_datasets(tokenizer, cfg, split="test")
        return train, validation

    loader = FileLockLoader(cfg)
    try:
        return loader.load(splits)
    finally:
        loader.cleanup()


def row_key(input_ids: Sequence[int], labels: Sequence[int]) -> bytes:
    """Return what two rows have in common if, and only if, tokens and labels are the same.

    Args:
        input_ids: T token ids.
        labels: T labels.

    Returns:
        16 * T bytes.
    """
    return np.asarray([input_ids, labels], dtype=np.int64).tobytes()


def contained(dataset: Dataset, keys: Collection[bytes]) -> set[bytes]:
    """Find which rows a prepared dataset holds, in one pass.

    Only rows as long as one that is looked for are read, so in a dataset of unequal lengths the
    pass costs little more than reading the lengths.

    Args:
        dataset: A dataset with `input_ids` and `labels`.
        keys: Rows to look for, by `row_key`.

    Returns:
        Those of the keys that are the key of a row.
    """
    import pyarrow.compute as pc

    wanted = list({len(key) // 16 for key in keys})
    found: set[bytes] = set()
    columns = dataset.select_columns(["input_ids", "labels"]).with_format("arrow")
    for table in columns.iter(batch_size=_BATCH):
        for batch in table.to_batches():
            ids, labels = batch.column("input_ids"), batch.column("labels")
            lengths = pc.list_value_length(ids).to_numpy(zero_copy_only=False)
            ends = np.cumsum(lengths)
            values = [column.flatten().to_numpy(zero_copy_only=False) for column in (ids, labels)]
            for row in np.flatnonzero(np.isin(lengths, wanted)):
                span = slice(ends[row] - lengths[row], ends[row])
                found.add(row_key(values[0][span], values[1][span]))
        found.intersection_update(keys)
        if len(found) == len(keys):
            break
    return found
