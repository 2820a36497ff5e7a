"""The rows that the host has prepared for the run: its tokenizer, its splits, what they hold."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

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
    from .host import FileLockLoader
    from .host import load_and_prepare_datasets as _load_and_prepare_datasets

    def splits() -> tuple[Dataset, Dataset | None]:
        train, validation, _ = _load_and_prepare_datasets(tokenizer, cfg)
        if cfg.test_datasets:
            _, validation, _ = _load_and_prepare_datasets(tokenizer, cfg, split="test")
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
