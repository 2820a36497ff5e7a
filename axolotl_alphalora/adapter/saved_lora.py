"""A plain LoRA as PEFT saves it: its settings, its factors and its whole modules.

Only what is exactly `W0 x + s B A x` on the base model's own weights is taken; every variant that
computes something else, or that changed the base weights, is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    KEY_PREFIX,
    METHOD,
    expert_scaling,
    read_adapter_config,
)
from ..hosts.constants import CHECKPOINT_WRAPPER, COMPILE_WRAPPER
from ..hosts.peft import get_pattern_key, lora_variants

_FACTOR = re.compile(r"(.+)\.lora_(A|B)\.weight")
_ON_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights` that leave the base weights as they are; others, such as PiSSA,
OLoRA, CorDA, LoftQ and LoRA-GA, take the adapter's start out of them."""
_REFUSED: Mapping[str, str] = {
    "lora_bias": "its B has a bias, which experts lack",
    "layer_replication": "it repeats blocks of the base model",
    "trainable_token_indices": "it changes single rows of the embeddings",
    "target_parameters": "it changes bare parameters, and experts are added to linear layers",
    "use_qalora": "it pools the input of its layers",
} | dict.fromkeys(lora_variants(), "it computes something else than a plain LoRA")
_TENSORS: Mapping[str, str] = {
    ".lora_embedding_": "a LoRA of an embedding",
    ".lora_magnitude_vector": "a DoRA magnitude",
}


@dataclass(frozen=True)
class SavedLora:
    """A plain LoRA in a directory; its tensors are read when they are asked for.

    Attributes:
        folder: The directory.
        config: Its `adapter_config.json`.
        modules: Exact name of each adapted module to (rank, in, out).
        whole: Names in the base model of the parameters that it holds in full, those of its
            `modules_to_save`, with their shapes.
        keys: Those names, and (module, "A" or "B"), to the keys of the file.
    """

    folder: Path
    config: Mapping[str, Any]
    modules: Mapping[str, tuple[int, int, int]]
    whole: Mapping[str, tuple[int, ...]]
    keys: Mapping[str | tuple[str, str], str]

    def factors(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A [rank, in] and B [out, rank] of a module, in fp32.

        Raises:
            ValueError: If one holds NaN or infinity; names the module.
        """
        a, b = (self.tensor((module, part)).float() for part in "AB")
        if not (a.isfinite().all() and b.isfinite().all()):
            raise ValueError(f"init_from: {self.folder}: the LoRA of {module} is not finite.")
        return a, b

    def scaling(self, module: str) -> float:
        """Factor on a module's update, by the LoRA's own alpha, rank and their patterns."""
        alphas = self.config.get("alpha_pattern") or {}
        alpha = alphas.get(get_pattern_key(list(alphas), module), self.config["lora_alpha"])
        rank = self.modules[module][0]
        return expert_scaling(alpha, rank, bool(self.config.get("use_rslora")))

    def tensor(self, name: str | tuple[str, str]) -> torch.Tensor:
        """A tensor as it is saved: that of (module, "A" or "B"), or of a name in `whole`."""
        with safe_open(self.folder / ADAPTER_WEIGHTS, framework="pt") as file:
            return file.get_tensor(self.keys[name])


def read_lora(folder: str) -> SavedLora:
    """Read the settings and the header of a saved LoRA.

    Args:
        folder: A directory that PEFT has saved a LoRA in.

    Raises:
        ValueError: If there is none, it is no plain LoRA, or a file is damaged; names the
            directory, and the setting or the tensor.
    """
    path = Path(folder)
    config = _read_config(path)
    modules, whole, keys = _read_header(path)
    for name, (rank, _, _) in modules.items():
        ranks = config.get("rank_pattern") or {}
        said = ranks.get(get_pattern_key(list(ranks), name), config.get("r"))
        if rank != said:
            raise ValueError(
                f"init_from: {path} is damaged: its LoRA of {name} has rank {rank}, and rank "
                f"{said} by its {ADAPTER_CONFIG}."
            )
    return SavedLora(path, config, modules, whole, keys)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise ValueError(f"init_from: {path} is no directory. Name that of a LoRA saved by PEFT.")
    try:
        config = read_adapter_config(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"init_from: {path} has no readable {ADAPTER_CONFIG}. Name the directory of a LoRA "
            "saved by PEFT."
        ) from error
    kind = config.get("peft_type")
    if kind == METHOD:
        raise ValueError(
            f"init_from: {path} holds an AlphaLoRA adapter. To continue from it, name it as "
            "lora_model_dir (with PEFT: PeftModel.from_pretrained)."
        )
    if kind != "LORA":
        raise ValueError(f"init_from: {path} holds a {kind} adapter, not a plain LoRA.")
    _check_plain(path, config)
    return config


def _check_plain(path: Path, config: Mapping[str, Any]) -> None:
    refused = {name: why for name, why in _REFUSED.items() if config.get(name)}
    if config.get("bias", "none") != "none":
        refused["bias"] = "it changes biases of the base model"
    if refused:
        name, why = next(iter(refused.items()))
        raise ValueError(
            f"init_from: {path} has {name}: {config[name]!r}, and {why}. Merge it into the base "
            "model and start from that, or give a plain LoRA."
        )
    init = config.get("init_lora_weights", True)
    if init not in _ON_THE_BASE:
        raise ValueError(
            f"init_from: {path} has init_lora_weights: {init!r}, which changed the base model's "
            "weights, so that its update fits no other. Save it again with "
            "path_initial_model_for_weight_conversion (see PEFT), which makes a plain LoRA."
        )


def _read_header(path: Path) -> tuple[dict, dict, dict]:
    """The modules, whole parameters and keys of a `SavedLora`."""
    shapes, keys = {}, {}
    for key, shape in _tensor_shapes(path).items():
        name = key.removeprefix(KEY_PREFIX)
        for wrapper in (COMPILE_WRAPPER, CHECKPOINT_WRAPPER):
            name = name.replace(wrapper, "")
        factor = _FACTOR.fullmatch(name)
        what = next((what for part, what in _TENSORS.items() if part in name), None)
        if factor and len(shape) != 2:
            what = "a LoRA of a convolution"
        elif ".lora_" in name and not factor:
            what = what or "which a plain LoRA has not"
        if what is not None:
            raise ValueError(
                f"init_from: {path} holds {name} ({what}), and experts are added to linear layers "
                "only. Merge it into the base model and start from that, or give a plain LoRA of "
                "linear layers."
            )
        known = (factor[1], factor[2]) if factor else name
        shapes[known], keys[known] = shape, key
    modules = {}
    for module in dict.fromkeys(known[0] for known in shapes if isinstance(known, tuple)):
        a, b = shapes.get((module, "A")), shapes.get((module, "B"))
        if a is None or b is None or a[0] != b[1]:
            raise ValueError(
                f"init_from: {path} is damaged: A and B of {module} have shapes {a} and {b}."
            )
        modules[module] = (a[0], a[1], b[0])
    if not modules:
        raise ValueError(f"init_from: {path} is damaged: {ADAPTER_WEIGHTS} holds no LoRA.")
    whole = {known: shape for known, shape in shapes.items() if isinstance(known, str)}
    return modules, whole, keys


def _tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    if not (path / ADAPTER_WEIGHTS).is_file():
        raise ValueError(
            f"init_from: {path} has no {ADAPTER_WEIGHTS}, the only format that is read. Load the "
            "LoRA with PEFT, and save it with safe_serialization=True."
        )
    try:
        with safe_open(path / ADAPTER_WEIGHTS, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"init_from: {path}: {ADAPTER_WEIGHTS} is damaged ({error}).") from error
