"""Which linear layers get experts."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

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
            ValueError: If a target matches nothing, or is named and would never run; names it.
        """
        from peft.tuners.tuners_utils import _get_in_out_features

        if not (self.linear or self.modules):
            raise ValueError(
                "No target layers: set `lora_target_linear: true`, or name the linear layers in "
                "`lora_target_modules`."
            )
        wanted: list[str | list[str]] = ["all-linear"] if self.linear else []
        if self.modules:
            wanted.append(self.modules)
        chosen = {name for target in wanted for name in self._matches(model, target)}
        shapes = {}
        for name, module in model.named_modules():
            if name in chosen:
                in_features, out_features = _get_in_out_features(module)
                assert in_features is not None and out_features is not None
                shapes[name] = (out_features, in_features)
        return shapes

    @property
    def identity(self) -> str:
        """A text that differs where the layers chosen may differ."""
        return json.dumps([asdict(self), version("peft"), version("axolotl-alphalora"), _RULES])

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
