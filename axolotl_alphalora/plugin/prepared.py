"""The training tokens of data that the host has prepared, counted without importing the host.

Its imports take longer than a plan. What finds the prepared data is the host's own function, read
from its source; the defaults that its validation fills in before are written out here, and a test
compares. Where anything is not as expected, nothing is found.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..hosts.constants import IGNORED

LARGEST = 256 * 2**20
"""Bytes of prepared data that are read; more takes longer than a plan should."""

_FOLDER = "last_run_prepared"
_KEYS = {"sequence_len": 512, "sample_packing_bin_size": 200, "sample_packing_group_size": 100_000}
_ROLES = {"role": "role", "content": "content"}
"""Copied: the host's defaults."""

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
        None where nothing is prepared for this configuration (`axolotl preprocess` does it), or it
        is larger than :data:`LARGEST`, or no data of supervised fine-tuning.
    """
    if not config.get("datasets") or any(config.get(key) for key in _STREAMS):
        return None
    try:
        folder = prepared_folder(config)
        rows, tokens = _count(folder)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SyntaxError):
        return None
    kept = rows - _set_aside(config.get("val_set_size") or 0, rows)
    return Prepared(folder, kept, round(tokens * kept / rows)) if rows and tokens else None


def prepared_folder(config: Mapping[str, Any]) -> Path:
    """Return where the host keeps the prepared data of a configuration.

    Raises:
        LookupError: If the host is not installed, or its function is not where it was.
        OSError: If its source cannot be read.
    """
    cfg = _Keys({**_KEYS, **{key: value for key, value in config.items() if value is not None}})
    tokenizer = cfg.tokenizer_config or cfg.base_model_config or cfg.base_model
    cfg["tokenizer_config"] = tokenizer
    if cfg.sample_packing and cfg.eval_sample_packing is None:
        cfg["eval_sample_packing"] = True
    datasets = [_dataset(entry) for entry in config["datasets"]]
    return Path(cfg.dataset_prepared_path or _FOLDER) / _hash()(cfg, datasets, tokenizer)


class _Keys(dict[str, Any]):
    """A mapping whose missing keys are None as attributes, as the host's is."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)


def _dataset(entry: Mapping[str, Any]) -> _Keys:
    found = _Keys({"message_property_mappings": _ROLES, **entry})
    if found.type == "chat_template" and found.chat_template is None:
        found["chat_template"] = "tokenizer_default"
    return found


def _hash() -> Callable[..., str]:
    """The host's function, with what it uses of the file that it is in."""
    spec = find_spec("axolotl")
    if spec is None or not spec.submodule_search_locations:
        raise LookupError("axolotl is not installed")
    file = Path(spec.submodule_search_locations[0], "utils", "data", "shared.py")
    tops: dict[str, ast.stmt] = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            tops[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            tops[node.targets[0].id] = node
    name = "generate_dataset_hash_from_config"
    wanted, todo = {}, [name]
    while todo:
        one = todo.pop()
        if one in tops and one not in wanted:
            wanted[one] = tops[one]
            todo += [n.id for n in ast.walk(tops[one]) if isinstance(n, ast.Name)]
    names: dict[str, Any] = {"json": json, "Enum": Enum, "Path": Path, "Any": Any, "md5": _md5}
    future = ast.parse("from __future__ import annotations").body
    module = ast.Module([*future, *(node for node in tops.values() if node in wanted.values())], [])
    exec(compile(module, str(file), "exec"), names)
    return names[name]


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _count(folder: Path) -> tuple[int, int]:
    """Rows of prepared data, and their tokens that have a label."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    files = [folder / entry["filename"] for entry in state["_data_files"]]
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
