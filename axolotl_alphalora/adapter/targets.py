"""Which modules of a model an AlphaLoRA config adapts, decided before any of them is touched."""

from __future__ import annotations

import copy
import difflib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..blocks import block_name, stack_of
from ..hosts.constants import CLASSIFIER_HEADS, SPAN_HEADS
from ..hosts.peft import (
    INCLUDE_LINEAR_LAYERS_SHORTHAND,
    SEQ_CLS_HEAD_NAMES,
    BaseTunerLayer,
    check_target_module_exists,
    include_all_linear_layers,
    resolve_quantization_backend,
)
from ..hosts.torch import whole_shape
from ..hosts.transformers import Conv1D
from .config import AlphaLoraConfig
from .layer import AlphaLoraLayer
from .uncalled import uncalled_layers

_HEADS = {
    "TOKEN_CLS": ("TokenClassification", CLASSIFIER_HEADS),
    "SEQ_CLS": ("(?<!Token)Classification|MultipleChoice", CLASSIFIER_HEADS),
    "QUESTION_ANS": ("QuestionAnswering", SPAN_HEADS),
}
"""PEFT's task to what names of transformers' classes have, and what PEFT adds to
`modules_to_save`."""
_REGEX_HINT = (
    ". A single string is a regular expression for the whole name: write a list, such as "
    "[q_proj], to give names."
)


def resolve_targets(
    config: AlphaLoraConfig, model: nn.Module, beside: Sequence[str] = ()
) -> list[str]:
    """Exact names of the modules that `config` targets in `model`, in the model's order.

    Works on a model on the meta device too. The config is not changed. `"all-linear"` leaves out
    the output embeddings, classification and question answering heads, and layers whose weight the
    model reads without calling them.

    Args:
        config: Where its `num_experts` is the list of targets (see [`AlphaLoraConfig.counted`]),
            that decides; else its `target_modules`, `exclude_modules`, `layers_to_transform`,
            `layers_pattern` and `modules_to_save`.
        model: The base model, adapted already or not.
        beside: Names that are chosen already. A block of `layers_to_transform` needs a target here
            or there.

    Raises:
        TypeError: If a target is not a linear layer that PEFT can adapt; names the module.
        ValueError: If a target names stacked expert weights of a mixture-of-experts base or a layer
            that the model does not call, or an entry of `target_modules`, `exclude_modules` or
            `layers_to_transform` matches nothing.
    """
    modules = outside_adapters(model)
    counted = None if config.counted is None else set(config.counted)
    if config.saved and counted is not None:
        return _supported((name, module) for name, module in modules if name in counted)
    _check_excludes(config, model)
    probe = copy.copy(config)
    if counted is not None:
        probe.target_modules = counted
    all_linear = is_all_linear(probe)
    uncalled = uncalled_layers(model)
    if all_linear:
        include_all_linear_layers(probe, model)
        linear = {*(probe.target_modules or ()), *_adapted_layers(model)}
        probe.target_modules = linear - uncalled.keys()
        probe.modules_to_save = [
            *(probe.modules_to_save or ()),
            *(head for _, head in heads(config, model)),
        ]
    _check_fused_experts(probe, model, refuse=not all_linear)
    names = _supported(
        (name, module)
        for name, module in modules
        if _is_match(probe, name)
        and (counted is None or name in counted)
        and _in_wanted_block(probe, name, named=not all_linear)
    )
    _check_called(names, uncalled)
    _check_layers(config, [*beside, *names], [name for name, _ in modules])
    idle = _idle_targets(probe, [name for name, _ in modules])
    if idle or not names:
        leaves = {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D))
        }
        raise ValueError(
            f"target_modules={idle or config.target_modules!r} matches no module of "
            f"{type(model).__name__}. Its linear layers are called: "
            + ", ".join(sorted(leaves))
            + (_REGEX_HINT if isinstance(config.target_modules, str) else "")
        )
    return names


def is_all_linear(config: AlphaLoraConfig) -> bool:
    """Whether a config asks for every linear layer; PEFT takes the word in any case."""
    targets = config.target_modules
    return isinstance(targets, str) and targets.lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND


def heads(config: AlphaLoraConfig, model: nn.Module) -> Iterator[tuple[str, str]]:
    """PEFT's task and the name of each head that it trains in full for that, if it is there.

    Args:
        config: Its `task_type` counts, if it has one.
        model: The base model; a class of transformers tells its task by its name too.
    """
    name = type(model).__name__ if isinstance(model, PreTrainedModel) else ""
    for task, (part, names) in _HEADS.items():
        if task == config.task_type or re.search(part, name):
            yield from ((task, head) for head in names)


def outside_adapters(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The model's modules without the insides of tuner layers that are there already."""
    inside: tuple[str, ...] = ()
    found = []
    for name, module in model.named_modules():
        if not name or name.startswith(inside):
            continue
        found.append((name, module))
        if isinstance(module, BaseTunerLayer):
            inside += (name + ".",)
    return found


def _supported(found: Iterable[tuple[str, nn.Module]]) -> list[str]:
    """The names, once PEFT can adapt all modules."""
    names = []
    for name, module in found:
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if not isinstance(base, (nn.Linear, Conv1D)) and not _is_quantised_linear(base):
            raise TypeError(
                f"Target module {name} is a {type(base).__name__}, which AlphaLoRA cannot adapt: "
                "only linear layers (nn.Linear, Conv1D and their quantised forms) are supported. "
                "Take it out of target_modules, or name it in exclude_modules."
            )
        names.append(name)
    return names


def _is_quantised_linear(module: nn.Module) -> bool:
    backend = resolve_quantization_backend(module)
    return backend is not None and backend.layer_type == "linear"


def _check_called(names: list[str], uncalled: Mapping[str, str]) -> None:
    for name in names:
        if name in uncalled:
            raise ValueError(
                f"Target {name} would get experts that do not run: {uncalled[name]} reads its "
                "weight without calling it, in some of its passes at least. Take it out of "
                "target_modules and num_experts, or name it in exclude_modules."
            )


def _is_match(config: AlphaLoraConfig, name: str) -> bool:
    """PEFT answers with a bool, a regex match, or a false object for an excluded module."""
    return bool(check_target_module_exists(config, name))


def _in_wanted_block(config: AlphaLoraConfig, name: str, named: bool) -> bool:
    """Whether `layers_to_transform` admits a module; PEFT asks that only of names it shortens.

    A layer outside of all blocks, such as an output head, is not asked if it is `named`.
    """
    if config.layers_to_transform is None or (named and block_name(name) == name):
        return True
    shortened = copy.copy(config)
    shortened.target_modules = {name.rpartition(".")[2]}
    return _is_match(shortened, f"model.{name}")


def _adapted_layers(model: nn.Module) -> list[str]:
    """Linear layers that carry experts already, but for the output head.

    PEFT knows layers that are adapted by their class names only.
    """
    output_embeddings: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = output_embeddings()
    return [
        name
        for name, module in outside_adapters(model)
        if isinstance(module, AlphaLoraLayer) and module is not head
    ]


def _check_layers(config: AlphaLoraConfig, names: list[str], modules: list[str]) -> None:
    """Refuse a pattern that fits no list of blocks, and an index for which there is no target."""
    wanted = config.layers_to_transform
    if wanted is None:
        return
    given = config.layers_pattern or []
    for pattern in [given] if isinstance(given, str) else given:
        if not any(re.match(rf"(.*\.)?{pattern}\.\d+\.", name) for name in modules):
            stacks = {stack_of(name) for name in modules if block_name(name) != name}
            there = sorted(f"{stack.rpartition('.')[2]} ({stack})" for stack in stacks)
            raise ValueError(
                f"layers_pattern={pattern!r} is the name of no list of blocks. The model has: "
                f"{', '.join(there) or 'none'}."
            )
    found = {part for name in names for part in name.split(".") if part.isdigit()}
    for index in [wanted] if isinstance(wanted, int) else wanted:
        if str(index) not in found:
            raise ValueError(
                f"layers_to_transform names block {index}, in which there is no target module."
            )


def _check_fused_experts(config: AlphaLoraConfig, model: nn.Module, refuse: bool) -> None:
    """Refuse, or with "all-linear" point out, the 3-D weights of a base model's own experts."""
    fused = [name for name, p in model.named_parameters() if len(whole_shape(p)) == 3]
    if refuse:
        hit = next((name for name in fused if _is_match(config, name)), None)
        if hit is not None:
            raise ValueError(
                f"Target {hit} is a stacked (3-D) expert weight of a mixture-of-experts base, "
                "not a linear layer; AlphaLoRA cannot adapt it. Name the linear layers more "
                f"exactly, or add {hit!r} to exclude_modules."
            )
    elif fused := [name for name in fused if "expert" in name]:
        warnings.warn(
            f"The base model keeps its own experts in stacked weights (first: {fused[0]}), which "
            "AlphaLoRA cannot adapt. Only its linear layers get experts.",
            stacklevel=3,
        )


def _idle_targets(config: AlphaLoraConfig, names: list[str]) -> list[str]:
    """Entries of a list of targets that no module answers to; a regex is one entry."""
    if isinstance(config.target_modules, str) or config.target_modules is None:
        return []
    return sorted(
        entry
        for entry in config.target_modules
        if not any(_is_called(name, entry) for name in names)
    )


def _check_excludes(config: AlphaLoraConfig, model: nn.Module) -> None:
    """Refuse an entry of `exclude_modules` that answers to nothing: what it meant is trained."""
    excluded = config.exclude_modules or []
    modules = outside_adapters(model)
    containers = [
        name
        for name, module in modules
        if any(module.children()) and not isinstance(module, BaseTunerLayer)
    ]
    # Stacked expert weights are excluded by name too, and some loaders add a head to the model.
    names = [name for name, _ in modules if name not in set(containers)]
    names += [name for name, _ in model.named_parameters()] + SEQ_CLS_HEAD_NAMES
    if isinstance(excluded, str):
        if not any(re.fullmatch(excluded, name) for name in names):
            inside = any(re.fullmatch(excluded, name) for name in containers)
            raise ValueError(
                f"exclude_modules={excluded!r} matches no layer of {type(model).__name__}"
                + (_inside(f"{excluded}\\..*") if inside else _REGEX_HINT)
            )
        return
    leaves = {name.rpartition(".")[2] for name in names}
    for entry in sorted(excluded):
        if not any(_is_called(name, entry) for name in names):
            near = difflib.get_close_matches(entry, [*leaves, *names], n=1)
            hint = f". Did you mean {near[0]}?" if near else "."
            if any(_is_called(name, entry) for name in containers):
                hint = _inside(f"(.*\\.)?{re.escape(entry)}\\..*")
            raise ValueError(
                f"exclude_modules={entry!r} matches no layer of {type(model).__name__}{hint}"
            )


def _is_called(name: str, entry: str) -> bool:
    """Whether an entry of a list means the module of that exact name."""
    return name == entry or name.endswith(f".{entry}")


def _inside(pattern: str) -> str:
    return (
        ", only modules around layers. To leave out all that is inside, give a regular expression "
        f"instead of a list: {pattern!r}."
    )
