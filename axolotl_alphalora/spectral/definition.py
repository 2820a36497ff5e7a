"""A model as transformers defines it, without weights: its layers, and which tensors they load.

Needs transformers; everything else in this package does without it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..blocks import block_name, stack_of
from ..hosts.torch import is_convolution, whole_shape
from .classes import bare_model, trained_class, whole_class

__all__ = [
    "WeightNames",
    "linear_layers",
    "load_config",
    "skeleton",
    "stacked_weights",
]


def load_config(
    model: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
) -> Any:
    """Read a model's config.

    Args:
        model: Directory or repository id.
        revision: Branch, tag or commit of a repository.
        trust_remote_code: Whether the model's own code may run.
        gguf_file: Name of a GGUF file in the directory that holds the config.

    Raises:
        ValueError: If it cannot be read.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            model,
            revision=revision,
            trust_remote_code=trust_remote_code,
            **({"gguf_file": gguf_file} if gguf_file else {}),
        )
    except Exception as error:  # config classes raise whatever their checks happen to raise
        raise ValueError(_unopened(model, error)) from error


def skeleton(
    model: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    whole: bool = False,
) -> nn.Module:
    """Return a model's modules on the meta device: names and sizes, no weights.

    Args:
        model: Directory or repository id.
        revision: Branch, tag or commit of a repository.
        trust_remote_code: Whether the model's own code may run.
        gguf_file: Name of a GGUF file in the directory that holds the config.
        whole: Whether all of the model is meant, or what is trained of it, see
            :mod:`~axolotl_alphalora.spectral.classes`.

    Raises:
        ValueError: If the config cannot be read, or transformers has no such class for it.
    """
    config = load_config(model, revision, trust_remote_code, gguf_file)
    # Quantised or not, the linear layers have the same names.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    factory = (whole_class if whole else trained_class)(config, model)
    try:
        return bare_model(factory, config, trust_remote_code)
    except Exception as error:
        raise ValueError(_unopened(model, error)) from error


def stacked_weights(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the weights inside numbered blocks that hold several matrices, such as experts.

    They are no linear layers: :func:`linear_layers` leaves them out.

    Args:
        model: A model, on any device.

    Returns:
        Exact name of the parameter to its shape of three or more dimensions.
    """
    modules = dict(model.named_modules())
    found = {}
    for name, parameter in model.named_parameters():
        owner, shape = modules[name.rpartition(".")[0]], tuple(whole_shape(parameter))
        if len(shape) > 2 and block_name(name) != name and not is_convolution(owner):
            found[name] = shape
    return found


def linear_layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the linear layers inside numbered blocks: not the head, not the embeddings.

    Args:
        model: A model, on any device.

    Returns:
        Exact name to (output features, input features), in the model's order.
    """
    from ..hosts.transformers import Conv1D

    shapes = {}
    for name, module in model.named_modules():
        if block_name(name) == name:
            continue
        if isinstance(module, Conv1D):
            shapes[name] = (module.nf, module.nx)
        elif _is_linear(module):
            shapes[name] = (module.out_features, module.in_features)
    return shapes


def _unopened(model: str, error: Exception) -> str:
    said = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
    local = "" if Path(model).exists() else f"there is no directory {model}, and as a hub id "
    return f"the model {model} cannot be opened: {local}{said}"


def _is_linear(module: Any) -> bool:
    """Whether a module is a linear layer, of a quantisation's own class perhaps."""
    if isinstance(module, nn.Linear):
        return True
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return all(isinstance(size, int) for size in sizes) and not any(module.children())


_NO_LAYER = re.compile(r"embed|rotary|relative_attention_bias|norm|\bw[tp]e\b")
"""Names of what holds a matrix in a block without being a linear layer."""

_MTP = re.compile(r"(^|[._])(mtp|nextn)([._]|$)")
"""Names of layers that predict further tokens."""


@dataclass(frozen=True)
class _Source:
    keys: tuple[str, ...]
    patterns: tuple[str, ...]
    target: str
    converter: Any


class WeightNames:
    """Which stored tensors become which weight when transformers loads a checkpoint.

    Renamings, prefixes, and conversions that fuse or split tensors are those of transformers, so
    a weight is found under whatever name the checkpoint's authors gave it.

    Args:
        model: The model's skeleton, see :func:`skeleton`.
        keys: The keys of all stored tensors.
    """

    def __init__(self, model: Any, keys: Iterable[str]) -> None:
        from ..hosts.transformers import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            get_model_conversion_mapping,
            rename_source_key,
            tied_weights,
        )

        self._model = model
        mapping = get_model_conversion_mapping(model)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        of_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
        state = model.state_dict()
        collected: dict[str, dict[str, str | None]] = {}
        for key in sorted(keys, key=dot_natural_key):
            name, pattern = rename_source_key(
                key, renamings, converters, model.base_model_prefix, state
            )
            if name not in state and key in state:
                name, pattern = key, None
            collected.setdefault(name, {})[key] = pattern
        self._unknown = {
            key: name for name, keys in collected.items() if name not in state for key in keys
        }
        self._sources: dict[str, _Source] = {}
        for name, found in collected.items():
            patterns = tuple(pattern for pattern in found.values() if pattern is not None)
            converter = of_pattern[patterns[0]] if patterns else None
            source = _Source(tuple(found), patterns, name, converter)
            for target in [name] if converter is None else _targets(converter, name):
                self._sources[target] = source
        for tied, origin in tied_weights(model).items():
            if tied not in self._sources and origin in self._sources:
                self._sources[tied] = self._sources[origin]

    def keys_of(self, module_name: str) -> tuple[str, ...]:
        """Return the keys of the tensors that make up a module's weight, none if there are none."""
        source = self._sources.get(f"{module_name}.weight")
        return source.keys if source is not None else ()

    def left_out(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
        """Return the modules in numbered blocks whose matrices are stored and go nowhere.

        Args:
            shapes: Stored key to shape.

        Returns:
            ``further_blocks``: those of blocks beyond the model's own and those that transformers
            leaves out on purpose, such as layers for predicting several tokens; ``left_out``: all
            others, of which the model is perhaps a part. Only lists that are not empty. Embeddings
            and what belongs to a layer of the model, such as its scales, are not among them.
        """
        modules = dict(self._model.named_modules())
        leaves = {name for name, module in modules.items() if not any(module.children())}
        stacks = {stack_of(name) for name in leaves if block_name(name) != name}
        found: dict[str, dict[str, None]] = {"left_out": {}, "further_blocks": {}}
        for key, name in self._unknown.items():
            module = name.rpartition(".")[0]
            matrix = len(shapes[key]) == 2 and min(shapes[key]) > 1
            ours = module in modules or leaves & _parents(name)
            if not matrix or ours or block_name(module) == module or _NO_LAYER.search(module):
                continue
            further = block_name(module) not in modules and stack_of(module) in stacks
            listed = "further_blocks" if further or self._is_ignored(name) else "left_out"
            found[listed][key.rpartition(".")[0]] = None
        return {listed: list(names) for listed, names in found.items() if names}

    def _is_ignored(self, name: str) -> bool:
        from ..hosts.transformers import ignored_keys

        ignored = any(re.search(pattern, name) for pattern in ignored_keys(self._model))
        return ignored or bool(_MTP.search(name))

    def is_converted(self, module_name: str) -> bool:
        """Whether a module's weight is computed from what is stored, by more than renaming."""
        source = self._sources.get(f"{module_name}.weight")
        return source is not None and source.converter is not None

    def convert(self, module_name: str, stored: Mapping[str, Tensor]) -> Tensor:
        """Return a module's weight, converted from the stored tensors as transformers would.

        Args:
            module_name: The module.
            stored: Its tensors by :meth:`keys_of`.
        """
        source = self._sources[f"{module_name}.weight"]
        converter = copy.deepcopy(source.converter)
        for key, pattern in zip(source.keys, source.patterns, strict=True):
            converter.add_tensor(source.target, key, pattern, _giving(stored[key]))
        made = converter.convert(source.target, model=self._model, config=self._model.config)
        weight = made[f"{module_name}.weight"]
        return weight[0] if isinstance(weight, list) else weight


def _targets(converter: Any, name: str) -> list[str]:
    """Return the names of all weights that a converter makes, given that of the first."""
    first, *others = converter.target_patterns
    return [name, *(name.replace(first, other) for other in others)]


def _parents(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts))}


def _giving(tensor: Tensor) -> Any:
    return lambda: tensor
