"""Which linear layers get experts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib.metadata import version
from typing import TYPE_CHECKING

from .. import __version__

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Targets"]

_RULES = 2
"""Raised within a release where the same targets come to choose other layers."""


@dataclass(frozen=True)
class Targets:
    """Which linear layers get experts, as PEFT's options of the same names say.

    Attributes:
        modules: Names, or one regex.
        linear: Whether every linear layer but the output head is a target, besides `modules`; also
            left out are classification and question answering heads, and layers that never run.
        exclude: Names or a regex of modules to leave alone.
        layers: Indices of the blocks to adapt.
        layers_pattern: Name of the list of blocks.
        modules_to_save: Modules that are trained in full and so get no experts.
    """

    modules: str | list[str] | None = None
    linear: bool = False
    exclude: str | list[str] | None = None
    layers: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    modules_to_save: list[str] | None = None

    def resolve(self, model: nn.Module) -> dict[str, tuple[int, int]]:
        """Exact names and (out, in) features of the target layers, in the model's order.

        Raises:
            TypeError: If a target is no linear layer; names the module.
            ValueError: If an entry of an option matches nothing, or a target is named that would
                never run; names it.
        """
        from ..hosts.peft import in_out_features

        if not (self.linear or self.modules):
            raise ValueError(
                "No target layers: set `lora_target_linear: true`, or name the linear layers in "
                "`lora_target_modules`."
            )
        wanted: list[str | list[str]] = ["all-linear"] if self.linear else []
        if self.modules:
            wanted.append(self.modules)
        try:
            chosen = {name for target in wanted for name in self._matches(model, target)}
        except (TypeError, ValueError) as error:
            raise type(error)(_in_yaml_words(str(error))) from error
        _check_whole(self.modules_to_save or (), model)
        shapes = {}
        for name, module in model.named_modules():
            if name in chosen:
                in_features, out_features = in_out_features(module)
                assert in_features is not None and out_features is not None
                shapes[name] = (out_features, in_features)
        return shapes

    @property
    def identity(self) -> str:
        """A text that differs where the layers chosen may differ."""
        return json.dumps([asdict(self), version("peft"), __version__, _RULES])

    def _matches(self, model: nn.Module, target: str | list[str]) -> list[str]:
        from ..adapter import AlphaLoraConfig, resolve_targets

        for option in (target, self.exclude):
            if isinstance(option, str):
                try:
                    re.compile(option)
                except re.error as error:
                    raise ValueError(f"{option!r} is no regular expression: {error}") from error
        return resolve_targets(
            AlphaLoraConfig(
                target_modules=target,
                exclude_modules=self.exclude,
                layers_to_transform=self.layers,
                layers_pattern=self.layers_pattern,
                modules_to_save=self.modules_to_save,
            ),
            model,
        )


_IN_YAML = {
    "target_modules": "lora_target_modules",
    "exclude_modules": "lora_exclude_modules",
    "layers_to_transform": "peft_layers_to_transform",
    "layers_pattern": "peft_layers_pattern",
}


def _in_yaml_words(message: str) -> str:
    """A message about PEFT's options with the names that the YAML gives them."""
    names = "|".join(_IN_YAML)
    return re.sub(rf"\b({names})\b", lambda found: _IN_YAML[found[1]], message)


def _check_whole(wanted: Iterable[str], model: nn.Module) -> None:
    """Refuse a module to train in full that is not there, which PEFT leaves out without a word."""
    from ..hosts.peft import SEQ_CLS_HEAD_NAMES

    names = [name for name, _ in model.named_modules() if name] + SEQ_CLS_HEAD_NAMES
    for entry in wanted:
        if not any(name == entry or name.endswith(f".{entry}") for name in names):
            near = get_close_matches(entry, {name.rpartition(".")[2] for name in names}, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"lora_modules_to_save={entry!r} matches no module of {type(model).__name__}.{hint}"
            )
