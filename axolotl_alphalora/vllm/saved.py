"""A saved adapter as vLLM needs it: what it adds to which module of the base, and its tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    FORMAT_SINCE,
    KEY_PREFIX,
    METHOD,
    check_version,
    expert_scaling,
    read_adapter_config,
)
from ..mixture import Mixture

LOAD_FORMAT = "alphalora"
"""What `--load-format` names."""

FOLDER_KEY, ANY_BASE_KEY, DIGEST_KEY = "alphalora", "alphalora_any_base", "alphalora_digest"
"""Keys of `--additional-config`: the adapter's directory, whether the base may have another name
than the one that it was trained on, and, which is written, what the compiled graph depends on."""


@dataclass(frozen=True)
class SavedAdapter:
    """The settings of a saved adapter.

    Attributes:
        folder: Its directory.
        base_model: Directory or repository id of the base that it was trained on, if it says so.
        revision: Of the base in its repository; None for the usual one.
        mixture: The shape of its mixtures.
        planned: Module of the base to its experts as planned, those with any.
        ranks: The same modules to the rank of each expert before it is cut.
        lora_alpha: Scale of the experts' output.
        use_rslora: Whether they are scaled with the rank's root.
        base_blocks: Name of each list of blocks with experts to its length.
    """

    folder: Path
    base_model: str | None
    revision: str | None
    mixture: Mixture
    planned: Mapping[str, int]
    ranks: Mapping[str, int]
    lora_alpha: float
    use_rslora: bool
    base_blocks: Mapping[str, int]

    def scaling(self, module: str) -> float:
        """Factor on the output of an expert of a module."""
        whole = expert_scaling(self.lora_alpha, self.ranks[module], self.use_rslora)
        return self.mixture.segments * whole

    def shapes(self, module: str, in_features: int, out_features: int) -> dict[str, list[int]]:
        """Name, as in `Mixture.tensors`, and shape of the tensors of a module of that size."""
        planned, rank = self.planned[module], self.ranks[module]
        found = self.mixture.tensors(in_features, out_features, planned, rank)
        return {name: list(shape) for name, shape in found.items()}

    def digest(self) -> str:
        """What the compiled graph depends on, in a few characters: another one, another graph."""
        mixture = self.mixture
        shape = (mixture.top_k, mixture.segments, mixture.router_rank, mixture.share_a)
        layers = [(name, self.planned[name], self.ranks[name]) for name in sorted(self.planned)]
        return hashlib.sha256(json.dumps([shape, layers]).encode()).hexdigest()[:16]


def read_adapter(folder: str | Path) -> SavedAdapter:
    """Read the settings of an adapter that vLLM is to serve.

    Raises:
        ValueError: If there is none of this method in the directory, or it holds what cannot be
            served; says which, and what to do.
    """
    folder = Path(folder).expanduser()
    path = folder / ADAPTER_CONFIG
    try:
        values = read_adapter_config(folder)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} holds no adapter ({error}): name the directory that has {ADAPTER_CONFIG}"
        ) from error
    method = values.get("peft_type")
    if method != METHOD:
        advice = " vLLM serves a plain LoRA by --enable-lora." if method == "LORA" else ""
        raise ValueError(f"{folder} is no AlphaLoRA adapter: its peft_type is {method!r}.{advice}")
    check_version(values.get("needs_version", FORMAT_SINCE))
    if kept := values.get("modules_to_save"):
        raise ValueError(
            f"{path}: modules_to_save ({', '.join(kept)}) were trained in full, and vLLM would "
            "serve the base's own in their place. Serve this adapter with transformers "
            "(example_configs/serve.py)."
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"{folder} has no {ADAPTER_WEIGHTS}: save the adapter again")
    try:
        return _settings(folder, values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): save the adapter again"
        ) from error


def _settings(folder: Path, values: Mapping[str, Any]) -> SavedAdapter:
    mixture = Mixture(
        values["top_k"],
        values.get("segments", 1),
        values.get("router_rank"),
        values.get("share_a", False),
    )
    planned = {name: count for name, count in values["num_experts"].items() if count}
    pattern = values.get("rank_pattern") or {}
    ranks = {name: pattern.get(name, values["r"]) for name in planned}
    for name, rank in ranks.items():
        mixture.check_rank(rank, f"the rank of {name}")
    return SavedAdapter(
        folder,
        values.get("base_model_name_or_path"),
        values.get("revision"),
        mixture,
        planned,
        ranks,
        float(values["lora_alpha"]),
        bool(values["use_rslora"]),
        values.get("base_blocks") or {},
    )


class Weights:
    """The open weights of an adapter; a tensor is read when it is asked for."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = set(file.keys())

    def shape(self, module: str, name: str) -> list[int] | None:
        """Shape of a module's tensor; None if there is no such tensor."""
        key = f"{KEY_PREFIX}{module}.{name}"
        if key not in self._left:
            return None
        return list(self._file.get_slice(key).get_shape())

    def tensor(self, module: str, name: str) -> Any:
        """A module's tensor, on the CPU, as it was saved."""
        return self._file.get_tensor(f"{KEY_PREFIX}{module}.{name}")

    def others(self, modules: Mapping[str, int]) -> list[str]:
        """Names of the tensors that belong to none of these modules."""
        names = {key: key.removeprefix(KEY_PREFIX).rpartition(".")[0] for key in self._left}
        return sorted(key for key, module in names.items() if module not in modules)


def _strange(path: Path, key: str) -> str:
    """Why a tensor that belongs to no adapted module is there."""
    if ".alphalora_" in key:
        return (
            f"{path} holds {key}, of which {ADAPTER_CONFIG} says nothing: the two files do not "
            "belong together"
        )
    return (
        f"{path} holds {key}, which is no expert's. PEFT saves embeddings and head where training "
        "has resized the vocabulary, and vLLM would serve the base's own: serve it with "
        "transformers (example_configs/serve.py)"
    )


@contextmanager
def open_weights(adapter: SavedAdapter) -> Iterator[Weights]:
    """Open the weights of an adapter.

    Raises:
        ValueError: If the file is damaged, or holds tensors that the settings do not speak of.
    """
    from safetensors import SafetensorError, safe_open

    path = adapter.folder / ADAPTER_WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            weights = Weights(file)
            if others := weights.others(adapter.planned):
                raise ValueError(_strange(path, others[0]))
            yield weights
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): save the adapter again") from error
