"""A small sample of the run's own training data, per task, as the run tokenises and masks it.

Rows are drawn raw, tokenised by the host, and looked up in what it has prepared, because a prepared
row does not say where it comes from. Axolotl (0.20 and 0.21) takes every raw column away as it
tokenises, then merges the entries of `datasets:`, shuffles, drops and cuts, and only at the end
sets validation rows aside; no hook of a plugin lies in between. What was tried instead costs more
of its internals: to let a column `task` through, its tokenising strategies or its loader have to be
wrapped, all data tokenised once more wherever a prepared dataset is cached without the column, and
the column taken out again before its collators; to prepare entry by entry gives another validation
split than the run's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..hosts.constants import IGNORED
from ..samples import Sample, share_out
from . import host
from .data import (
    COLUMN,
    Entry,
    contained,
    load_entries,
    load_splits,
    load_tokenizer,
    row_key,
    rows_by_task,
    tokenize,
)

UNSAMPLED: Mapping[str, str] = {
    "pretraining_dataset": "its rows are a stream, and how many there are is not known",
    "streaming": "the rows are a stream, and how many there are is not known",
    "rl": "its rows and its loss are not those of supervised fine-tuning",
    "reward_model": "its rows and its loss are not those of supervised fine-tuning",
    "process_reward_model": "its rows and its loss are not those of supervised fine-tuning",
    "diffusion": "its loss is not that of the next token",
    "diffusion_lm": "its loss is not that of the next token",
    "processor_type": "images and sounds are prepared with the batches, not with the dataset",
    "skip_prepare_dataset": "the rows are tokenised with the batches, not with the dataset",
    "use_pose": "it gives every row random positions",
}
"""YAML keys with which no samples are drawn, and why."""

UNSAMPLED_TYPES: Mapping[str, str] = {
    "bradley_terry": "its rows are pairs for a reward model",
    "stepwise_supervised": "its rows are for a process reward model",
    "_synthetic": "its tokens are random",
}
"""Beginnings of `datasets[].type` with which no samples are drawn, and why."""

PLAN_FIRST = (
    "Plan first with a plain SFT configuration on such data (`alphalora plan sft.yml --output "
    "plan.json`), and name the file as `alphalora.plan`."
)


def check_data(cfg: Mapping[str, Any], advice: str = PLAN_FIRST) -> None:
    """Refuse a configuration whose training data cannot be sampled, before anything is loaded.

    Args:
        cfg: The configuration as nested mappings.
        advice: What to do instead.

    Raises:
        ValueError: Naming every key that stands in the way, with what to do instead.
    """
    problems = [f"`{key}`: {reason}" for key, reason in UNSAMPLED.items() if cfg.get(key)]
    entries = cfg.get("datasets") or []
    if not entries and not problems:
        problems.append("`datasets`: there are none")
    for index, entry in enumerate(entries):
        kind = str(entry.get("type"))
        for beginning, reason in UNSAMPLED_TYPES.items():
            if kind.startswith(beginning):
                problems.append(f"`datasets[{index}].type: {kind}`: {reason}")
    if problems:
        lines = "\n".join(f"  - {problem}." for problem in problems)
        raise ValueError(
            "What is measured on samples of the run's own training data cannot be measured here, "
            f"for they cannot be drawn:\n{lines}\n{advice}"
        )


def draw_samples(cfg: Any, count: int, seed: int = 0, advice: str = PLAN_FIRST) -> list[Sample]:
    """Draw training samples of every task, tokenised and masked as the run does.

    The task of a row is what its raw column `task` says; rows of a dataset without that column
    belong to one task, named after the dataset's entry in `datasets:`. Only drawn rows are
    tokenised. Each is then looked up in the datasets that the host has prepared for the run, and
    is used if the training split holds the same tokens and labels and the validation split does
    not. So a sample is a row that the run trains on, whatever the host drops, cuts, deduplicates
    or sets aside. The price is one pass over the prepared training rows of the same lengths, and
    where the host has prepared nothing yet, its preparation (see `load_splits`). Rows without a
    label to predict are passed over, and the same row is not drawn twice for a task.

    One process of a launch may call this alone. No global random state is read or changed.

    Args:
        cfg: The host's validated configuration.
        count: Samples in all, shared out among the tasks as evenly as can be. What a task cannot
            give, the others do.
        seed: Not negative. The same seed, data and configuration give the same samples in the
            same order.
        advice: What to do where the data cannot be sampled.

    Returns:
        The samples, task by task in the order of the data. `inputs` holds `input_ids` and `labels`,
        int64 [1, T] on the CPU. Fewer than `count` only where the data has no more.

    Raises:
        ValueError: If the data cannot be sampled, a row has no value in a `task` column that its
            dataset has, `count` is less than the number of tasks, or a task has no row that can
            be used.
    """
    check_data(cfg, advice)
    _check_plugins(advice)
    tokenizer = load_tokenizer(cfg)
    train, validation = load_splits(cfg, tokenizer)
    entries = load_entries(cfg)
    pools = {
        task: _Pool(rows, np.random.default_rng([seed, *task.encode()]))
        for task, rows in rows_by_task(entries).items()
    }
    _check_count(count, pools)
    while missing := _missing(count, pools):
        drawn = {
            task: _tokenized(pools[task].draw(number), entries, tokenizer, cfg)
            for task, number in missing.items()
        }
        keys = {key for rows in drawn.values() for key in rows}
        usable = contained(train, keys)
        if validation is not None:
            usable -= contained(validation, usable)
        for task, rows in drawn.items():
            pools[task].keep({key: row for key, row in rows.items() if key in usable})
    _report(count, pools)
    shares = share_out(count, {task: len(pool.found) for task, pool in pools.items()})
    return [
        Sample(task, {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])})
        for task, share in shares.items()
        for ids, labels in list(pools[task].found.values())[:share]
    ]


def draw_validation(cfg: Any, count: int, seed: int = 0) -> list[Sample]:
    """Draw rows that the run sets aside for validation, as it tokenises and masks them.

    Args:
        cfg: The host's validated configuration.
        count: Samples in all; fewer if there are no more.
        seed: Of the drawing.

    Returns:
        The samples, of one task; empty where the run has no validation rows.
    """
    validation = load_splits(cfg, load_tokenizer(cfg))[1]
    if validation is None:
        return []
    order = np.random.default_rng(seed).permutation(len(validation))[:count].tolist()
    return [
        Sample(
            "validation",
            {key: torch.tensor([validation[index][key]]) for key in ("input_ids", "labels")},
        )
        for index in order
        if any(label != IGNORED for label in validation[index]["labels"][1:])
    ]


_Row = tuple[list[int], list[int]]


@dataclass
class _Pool:
    """The rows of a task: those still to be drawn, and those that were found to be usable."""

    rows: np.ndarray
    random: np.random.Generator
    found: dict[bytes, _Row] = field(default_factory=dict)
    drawn: int = 0
    rounds: int = 0

    def __post_init__(self) -> None:
        self.rows = self.random.permutation(self.rows)

    @property
    def available(self) -> float:
        return len(self.found) if self.drawn == len(self.rows) else math.inf

    def draw(self, number: int) -> np.ndarray:
        """Some more rows than asked for, and twice as many each time that it was not enough."""
        size = (number + max(4, number // 2)) * 2**self.rounds
        rows = self.rows[self.drawn : self.drawn + size]
        self.drawn += len(rows)
        self.rounds += 1
        return rows

    def keep(self, rows: Mapping[bytes, _Row]) -> None:
        """Take in usable rows, shuffled: neighbours may be pieces of one long text."""
        keys = list(rows)
        for index in self.random.permutation(len(keys)):
            self.found.setdefault(keys[index], rows[keys[index]])


def _missing(count: int, pools: Mapping[str, _Pool]) -> dict[str, int]:
    """How many rows each task must still find to give its share."""
    shares = share_out(count, {task: pool.available for task, pool in pools.items()})
    gaps = {task: share - len(pools[task].found) for task, share in shares.items()}
    return {task: gap for task, gap in gaps.items() if gap > 0}


def _tokenized(
    rows: np.ndarray, entries: Sequence[Entry], tokenizer: Any, cfg: Any
) -> dict[bytes, _Row]:
    """Tokenise drawn rows, entry by entry; rows that predict nothing are left out."""
    by_entry: defaultdict[int, list[int]] = defaultdict(list)
    for entry, row in rows.tolist():
        by_entry[entry].append(row)
    return {
        row_key(ids, labels): (ids, labels)
        for entry, indices in by_entry.items()
        for ids, labels in tokenize(entries[entry], indices, tokenizer, cfg)
        if any(label != IGNORED for label in labels[1:])
    }


def _check_plugins(advice: str) -> None:
    from .host import BasePlugin, PluginManager

    for name, plugin in PluginManager.get_instance().plugins.items():
        way = type(plugin).load_datasets
        ours = way.__module__.partition(".")[0] == __name__.partition(".")[0]  # loads none
        if way is not BasePlugin.load_datasets and not ours:
            raise ValueError(
                f"`plugins`: {name} loads the data in its own way, so samples of it cannot be "
                f"drawn. {advice}"
            )


def _check_count(count: int, pools: Mapping[str, _Pool]) -> None:
    if count < len(pools):
        names = list(pools)
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise ValueError(
            f"{count} samples are too few for the {len(pools)} tasks of the training data, which "
            f"need at least one each: {shown}. Ask for {len(pools)} samples or more; if the column "
            f"`{COLUMN}` of the data does not name tasks, rename it."
        )


def _report(count: int, pools: Mapping[str, _Pool]) -> None:
    """Warn of tasks that gave less than their share; refuse those that gave nothing."""
    log = host.get_logger(__name__)
    shares = share_out(count, dict.fromkeys(pools, math.inf))
    for task, pool in pools.items():
        if not pool.found:
            raise ValueError(
                f"None of the {len(pool.rows)} rows of the task {task} can be used as a sample: "
                "each is in the validation split, has no label to predict, or was dropped as the "
                "host prepared the dataset (`sequence_len`, `min_sample_len`, duplicates). Change "
                "these, or take the task's rows out of the data."
            )
        if len(pool.found) < shares[task]:
            log.warning(
                "AlphaLoRA: the task %s has %d usable rows, %d fewer than its share of the "
                "samples; other tasks make up for it as far as they can.",
                task,
                len(pool.found),
                shares[task] - len(pool.found),
            )
    total = sum(len(pool.found) for pool in pools.values())
    if total < count:
        log.warning("AlphaLoRA: the data has %d usable rows, not %d.", total, count)
