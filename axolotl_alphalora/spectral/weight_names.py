"""Which stored tensors become which weight when transformers loads a checkpoint."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..blocks import block_name, stack_of

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
        model: The model's skeleton, see `skeleton`.
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
            `further_blocks`: those of blocks beyond the model's own and those that transformers
            leaves out on purpose, such as layers for predicting several tokens; `left_out`: all
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
            ours = module in modules or any(name.startswith(f"{leaf}.") for leaf in leaves)
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
            stored: Its tensors by `keys_of`.
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


def _giving(tensor: Tensor) -> Any:
    return lambda: tensor
