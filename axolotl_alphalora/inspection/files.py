"""The two files of a saved adapter, read without its base model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..files import (
    ADAPTER_CONFIG,
    ADAPTER_PICKLE,
    ADAPTER_WEIGHTS,
    FORMAT_SINCE,
    METHOD,
    adapter_below,
    check_version,
    expert_scaling,
    read_adapter_config,
)
from ..mixture import Mixture
from ..spectral.model_files import check_pointer, holds_model

_SAVE_AGAIN = "use another checkpoint, or train and save it again"


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter's configuration says of its experts.

    Importing PEFT, whose configuration would hold this too, takes longer than all of the reading.

    Attributes:
        base_model: Directory or repository id of the base model; None if it was not recorded.
        revision: Of the base model in its repository; None for the usual one.
        rank: Rank of an expert before it is cut, where `rank_pattern` does not name its module.
        mixture: The shape of its mixtures.
        lora_alpha: Scale of the experts' output.
        use_rslora: Whether they are scaled with the rank's root.
        num_experts: Module name to number of experts before they are cut; None where the adapter
            gives one for all.
        rank_pattern: Module name to rank, as `rank` is.
        plan: The plan that the numbers come from, or None.
    """

    base_model: str | None
    revision: str | None
    rank: int
    mixture: Mixture
    lora_alpha: float
    use_rslora: bool
    num_experts: Mapping[str, int] | None
    rank_pattern: Mapping[str, int]
    plan: Mapping[str, Any] | None

    def rank_of(self, module: str) -> int:
        """Rank of each expert of the module of that exact name, before it is cut."""
        return self.rank_pattern.get(module, self.rank)

    def scaling(self, rank: int) -> float:
        """Factor on the output of an expert that had that rank before it was cut."""
        return self.mixture.segments * expert_scaling(self.lora_alpha, rank, self.use_rslora)


def read_config(adapter_dir: str | Path) -> AdapterConfig:
    """Read the configuration of a saved adapter.

    Raises:
        ValueError: If there is no such directory, or no adapter of this method in it that this
            release reads; says which, and what to do.
    """
    folder = Path(adapter_dir)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no directory: name the one that holds {ADAPTER_CONFIG}")
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} has no {ADAPTER_CONFIG}{_elsewhere(folder)}")
    check_pointer(path)
    try:
        values = read_adapter_config(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): {_SAVE_AGAIN}") from error
    method = values.get("peft_type")
    if method != METHOD:
        raise ValueError(f"{folder} is not an AlphaLoRA adapter{_method(method)}")
    try:
        check_version(values.get("needs_version", FORMAT_SINCE))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        counts = values["num_experts"]
        return AdapterConfig(
            base_model=values.get("base_model_name_or_path"),
            revision=values.get("revision"),
            rank=int(values["r"]),
            mixture=Mixture(  # older releases had only the first of these
                values["top_k"],
                values.get("segments", 1),
                values.get("router_rank"),
                values.get("share_a", False),
            ),
            lora_alpha=float(values["lora_alpha"]),
            use_rslora=bool(values["use_rslora"]),
            num_experts=dict(counts) if isinstance(counts, dict) else None,
            rank_pattern=dict(values.get("rank_pattern") or {}),  # older releases had none
            plan=values.get("plan"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): {_SAVE_AGAIN}"
        ) from error


@contextmanager
def open_weights(adapter_dir: str | Path) -> Iterator[Any]:
    """Open the weights of a saved adapter; tensors are read when they are asked for.

    Yields:
        The open file, on the CPU.

    Raises:
        ValueError: If there is no such file, or it is damaged, also where that shows only when a
            tensor is read.
    """
    folder = Path(adapter_dir)
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        pickled = folder / ADAPTER_PICKLE
        if pickled.is_file():
            raise ValueError(
                f"{folder} has {pickled.name} and no {ADAPTER_WEIGHTS}. A pickle can run code and "
                "is not read: load the adapter where you trust it, and save it with "
                "`save_pretrained(DIR, safe_serialization=True)`"
            )
        raise ValueError(f"{folder} has no {ADAPTER_WEIGHTS}: {_SAVE_AGAIN}")
    check_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): {_SAVE_AGAIN}") from error


def _elsewhere(folder: Path) -> str:
    """Name the adapters below a directory, if there are any."""
    below = adapter_below(folder)
    if below is not None:
        return f", but {below} has one: name that directory"
    if holds_model(folder):
        return (
            ": it holds a whole model. Name the adapter's directory instead (`output_dir`); the "
            "model is read from where the adapter says, or from --base-model"
        )
    return ": name the directory that training saved the adapter in (`output_dir`)"


def _method(method: Any) -> str:
    if method == "LORA":
        return (
            ": it is a plain LoRA (peft_type LORA), which has one expert per module and no router, "
            "so there is nothing to compare"
        )
    return f" (its peft_type is {method!r}): name one trained with `adapter: alphalora`"
