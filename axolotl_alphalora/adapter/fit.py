"""Whether an adapter's config, its saved weights and a base model belong together."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

import torch
from peft import PeftModel
from torch import nn

from ..blocks import block_name, stack_of
from ..files import ADAPTER_CONFIG
from ..hosts.constants import CHECKPOINT_WRAPPER
from .config import AlphaLoraConfig
from .layer import AlphaLoraLayer
from .targets import outside_adapters


def check_known(config: AlphaLoraConfig, key: str, model: nn.Module) -> None:
    """Check that a model has all modules that a mapping of the config names.

    Args:
        config: The config.
        key: Its field, `"num_experts"` or `"rank_pattern"`; a number for all modules is fine.
        model: The base model, adapted already or not.

    Raises:
        ValueError: Names the first module that it does not have.
    """
    names = getattr(config, key)
    modules = dict(outside_adapters(model))
    for name in names if isinstance(names, dict) else ():
        if name in modules:
            continue
        if config.saved:
            raise ValueError(
                f"The adapter's {key} names {name}, which the model does not have: "
                + _other_base(config, model)
            )
        near = difflib.get_close_matches(name, modules, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"{key} names {name}, which the model does not have (it takes exact names, no "
            f"patterns).{hint}"
        )


def check_depth(config: AlphaLoraConfig, model: nn.Module) -> None:
    """Check that the lists of blocks of a model are as long as those an adapter was trained on.

    A list that the model does not have is left to `check_known`, which names a layer in it.

    Raises:
        ValueError: Names the first list of another length, and both lengths.
    """
    modules = dict(model.named_modules())
    for name, count in (config.base_blocks or {}).items():
        here = len(list(modules[name].children())) if name in modules else count
        if here != count:
            raise ValueError(
                f"The adapter was trained on {count} blocks in {name}, and the model has {here}: "
                + _other_base(config, model)
            )


def block_counts(names: Iterable[str], model: nn.Module) -> dict[str, int]:
    """Lists of blocks that modules are in, such as `model.layers`, to their lengths."""
    stacks = dict.fromkeys(stack_of(name) for name in names if block_name(name) != name)
    return {stack: len(list(model.get_submodule(stack).children())) for stack in stacks}


def check_counts(counts: dict[str, int], targets: list[str]) -> None:
    """Check that a mapping of experts per module and the targets are about the same modules.

    Raises:
        ValueError: Names the first module that only one of the two knows.
    """
    for name, count in counts.items():
        if count and name not in targets:
            raise ValueError(
                f"num_experts gives {name} {count} experts, but target_modules, exclude_modules or "
                "layers_to_transform leave it out. Give it 0 experts, or change those."
            )
    for name in targets:
        if name not in counts:
            raise ValueError(
                f"Target module {name} has no entry in num_experts. Give it a count (0 leaves it "
                "alone) or take it out of target_modules."
            )


def check_names(adapters: Collection[str], model: nn.Module) -> None:
    """Check that the tensors of adapters beside each other can be told apart when they are saved.

    PEFT leaves out of an adapter's file every tensor with another adapter's name anywhere in it.

    Raises:
        ValueError: Names the first adapter that is called like a part of a module's name.
    """
    if len(adapters) < 2:
        return
    parts = {"base_model", "model", "modules_to_save", "weight", "bias"}
    names = (name.partition(".modules_to_save.")[0] for name, _ in outside_adapters(model))
    parts.update(part for name in names for part in name.split("."))
    for adapter in adapters:
        if adapter in parts:
            raise ValueError(
                f"An adapter beside another cannot be called {adapter!r}: that is a part of the "
                "names of the model's tensors, by which PEFT tells adapters apart when it saves "
                "them. Give that adapter another name."
            )


def check_ranks(ranks: Iterable[str], counts: dict[str, int]) -> None:
    """Check that every module with a rank of its own has experts.

    Args:
        ranks: Exact names of the modules in `rank_pattern`.
        counts: Experts of every target module, as resolved.

    Raises:
        ValueError: Names the first module that has none.
    """
    for name in ranks:
        if not counts.get(name):
            reason = "num_experts gives it 0 experts" if name in counts else "it is no target"
            raise ValueError(
                f"rank_pattern gives {name} a rank, but {reason}. Take it out of rank_pattern, or "
                "give the module experts."
            )


def weight_shapes(model: nn.Module, adapter_name: str) -> dict[str, torch.Size]:
    """Keys in the model's state dict and shapes of all weights of an adapter.

    torch's wrapper around a recomputed block is in the names of its modules, but not in the keys.
    """
    return {
        f"{name}.{part}.{adapter_name}".replace(CHECKPOINT_WRAPPER, ""): parameter.shape
        for name, module in model.named_modules()
        if isinstance(module, AlphaLoraLayer)
        for part in module.adapter_layer_names
        for key, parameter in getattr(module, part).items()
        if key == adapter_name
    }


def check_sizes(
    config: AlphaLoraConfig,
    model: nn.Module,
    adapter_name: str,
    state_dict: dict[str, torch.Tensor],
) -> None:
    """Check that the weights to load are for layers of the model's sizes.

    Raises:
        ValueError: Names the first layer that differs, its sizes in both, and the adapter's base.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, AlphaLoraLayer):
            continue
        name = name.replace(CHECKPOINT_WRAPPER, "")
        a, b = (state_dict.get(f"{name}.alphalora_{part}.{adapter_name}") for part in "AB")
        if a is None or b is None:
            continue
        found, here = (a.shape[-1], b.shape[0]), (layer.in_features, layer.out_features)
        if found != here:
            raise ValueError(
                "In the adapter {} has {} inputs and {} outputs, and in the model {} and {}: "
                "".format(layer.module_name, *found, *here)
                + _other_base(config, model)
            )


def check_weights(expected: dict[str, torch.Size], state_dict: dict[str, torch.Tensor]) -> None:
    """Compare the weights to load with the adapter that the config built."""
    for key, shape in expected.items():
        if key not in state_dict:
            raise ValueError(
                f"The adapter's weights have no tensor for {key} (expected shape "
                f"{tuple(shape)}): {ADAPTER_CONFIG} and the weights do not belong together."
            )
        if state_dict[key].shape != shape:
            raise ValueError(
                f"The adapter's weights do not fit its config at {key}: the file holds "
                f"{tuple(state_dict[key].shape)}, its num_experts, segments, router_rank, "
                f"share_a, r and rank_pattern give {tuple(shape)}."
            )
    left_over = next((k for k in state_dict if "alphalora_" in k and k not in expected), None)
    if left_over is not None:
        raise ValueError(
            f"The adapter's weights hold {left_over}, for which the config or the model has no "
            f"place: {ADAPTER_CONFIG}, the weights and the base model do not belong together."
        )


def _other_base(config: AlphaLoraConfig, model: nn.Module) -> str:
    """The end of a message: this is another base than the adapter's."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    here = getattr(base, "name_or_path", None)
    right = config.base_model_name_or_path or "the one it was trained on"
    return (
        f"this {type(base).__name__}{f' ({here})' if here else ''} is another base model than "
        f"the adapter's. Open it on {right}."
    )
