"""What a plan is asked for, and for which layers: read from keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..allocation import AllocationRequest
from ..blocks import Shapes
from ..hosts.constants import OPTIMIZER
from .config import AlphaLoraConfigBlock, plain

if TYPE_CHECKING:
    from torch import nn

    from ..spectral import BaseModel


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
        chosen: list[str] = []
        try:
            for target in wanted:
                chosen += self._matches(model, target, chosen)
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

    def _matches(
        self, model: nn.Module, target: str | list[str], beside: Sequence[str]
    ) -> list[str]:
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
            beside,
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


REQUEST_KEYS = (
    "base_model",
    "revision_of_model",
    "trust_remote_code",
    "overrides_of_model_config",
    "lora_r",
    "lora_target_modules",
    "lora_target_linear",
    "lora_exclude_modules",
    "lora_modules_to_save",
    "peft_layers_to_transform",
    "peft_layers_pattern",
    "peft_autocast_adapter_dtype",
    "optimizer",
    "optim_args",
    "alphalora",
)
"""Keys of a configuration that its block and its request are read from."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest(AllocationRequest):
    """Everything a plan depends on but the training data, as plain values.

    Attributes:
        targets: The layers that get experts.
        revision: Revision of a hub model.
        trust_remote_code: Whether the model's own code may run.
        overrides: Settings of the model's config that the run changes.
    """

    targets: Targets
    revision: str | None = None
    trust_remote_code: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)


def read_block(cfg: Mapping[str, Any]) -> AlphaLoraConfigBlock:
    """Read the `alphalora:` block of a configuration, with its defaults.

    Raises:
        ValueError: If a key or value in it is wrong; names it.
    """
    block = cfg.get("alphalora")
    return AlphaLoraConfigBlock.model_validate({} if block is None else block)


def plan_request(cfg: Mapping[str, Any], block: AlphaLoraConfigBlock) -> PlanRequest:
    """Read a plan request from the keys of a configuration.

    Args:
        cfg: The host's configuration, or what `as_written` makes of the mapping in a YAML file.
        block: Its `alphalora:` block.

    Raises:
        ValueError: If `base_model` is missing, `lora_r` cannot be cut, or a memory budget cannot be
            counted; names the key.
    """
    if not cfg.get("base_model"):
        raise ValueError("`base_model` is missing: the directory or hub id of the model to adapt.")
    if cfg.get("lora_r"):
        block.mixture.check_rank(cfg["lora_r"], "`lora_r`")
    options = dict(block.allocation or {"strategy": "alphalora"})
    return PlanRequest(
        base_model=str(cfg["base_model"]),
        revision=cfg.get("revision_of_model"),
        trust_remote_code=bool(cfg.get("trust_remote_code")),
        overrides=plain(cfg.get("overrides_of_model_config")) or {},
        targets=Targets(
            modules=_plain(cfg.get("lora_target_modules")),
            linear=bool(cfg.get("lora_target_linear")),
            exclude=_plain(cfg.get("lora_exclude_modules")),
            layers=_plain(cfg.get("peft_layers_to_transform")),
            layers_pattern=_plain(cfg.get("peft_layers_pattern")),
            modules_to_save=_plain(cfg.get("lora_modules_to_save")),
        ),
        rank=cfg.get("lora_r") or 8,
        mixture=block.mixture,
        strategy=options.pop("strategy"),
        options=options,
        budget=block.budget,
        spend=block.spend or "experts",
        optimizer=None if block.memory_mib is None else counted_optimizer(cfg),
    )


def base_model(request: PlanRequest) -> BaseModel:
    """Return the files of the request's base model."""
    from ..spectral import BaseModel, default_cache

    return BaseModel(
        request.base_model, request.revision, request.trust_remote_code, default_cache()
    )


def layers(request: PlanRequest, base: BaseModel | None = None) -> Shapes:
    """Return exact names and (out, in) features of the layers that get experts.

    Raises:
        TypeError: If a target is no linear layer; names the module.
        ValueError: If the model cannot be opened, a target matches nothing, or the run's overrides
            of the model's config change the layers; names it.
    """
    base = base or base_model(request)
    found = base.layers(request.targets.resolve, request.targets.identity)
    if request.overrides:
        _check_overrides(request, found)
    return found


def _check_overrides(request: PlanRequest, shapes: Shapes) -> None:
    from ..spectral.definition import skeleton

    where = f"overrides_of_model_config ({', '.join(request.overrides)})"
    try:
        model = skeleton(
            request.base_model,
            request.revision,
            request.trust_remote_code,
            overrides=request.overrides,
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    try:
        same = request.targets.resolve(model) == shapes
    except (TypeError, ValueError):
        same = False
    if not same:
        raise ValueError(
            f"{where} changes the layers that get experts, which are counted in the "
            "checkpoint. Remove what changes them, or save a model with these settings and name "
            "it in `base_model`."
        )


def counted_optimizer(cfg: Mapping[str, Any]) -> str:
    """The optimizer that a memory budget counts.

    Raises:
        ValueError: If something is trained that such a budget does not count.
    """
    missed = uncounted(cfg)
    if missed is not None:
        raise ValueError(
            f"`alphalora.memory_mib` counts {missed}. Remove that option, or give "
            "`alphalora.total_parameters` instead."
        )
    return str(cfg.get("optimizer") or OPTIMIZER)


def uncounted(cfg: Mapping[str, Any]) -> str | None:
    """What a memory budget counts, and which option adds to that; None if none does."""
    if cfg.get("lora_modules_to_save"):
        return "experts and routers, but `lora_modules_to_save` trains whole modules beside them"
    if cfg.get("optim_args"):
        return "an optimizer's state with its defaults, which `optim_args` may change"
    if cfg.get("peft_autocast_adapter_dtype") is False:
        return (
            "adapter weights in fp32, but `peft_autocast_adapter_dtype: false` keeps them in the "
            "base model's dtype"
        )
    return None


def in_yaml(value: object) -> str:
    """A value of one word as a YAML spells it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _plain(value: Any) -> Any:
    """The host's value as a plain one; None where there is none."""
    value = plain(value)
    return None if value in (None, "", []) else value
