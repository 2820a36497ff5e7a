"""What the host and its trainers do to what trains: freeze it, cast it, switch dropout off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from . import host

if TYPE_CHECKING:
    import torch
    from torch import nn

_COPY, _OWN = ".modules_to_save.default.", ".original_module."
"""What PEFT calls its trained copy of a module, and the module itself, in names of parameters."""


def _trained(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Layer, name in the model and value of all that a run trains of its experts and routers."""
    from ..adapter import AlphaLoraLayer

    for name, layer in model.named_modules():
        if isinstance(layer, AlphaLoraLayer):
            for key, parameter in layer.named_parameters():
                if key.startswith("alphalora_") and key.endswith(".default"):
                    yield name, f"{name}.{key}", parameter


def check_trained(model: nn.Module) -> None:
    """Check that no expert was frozen after it was added.

    Args:
        model: The adapted model, as its trainer gets it.

    Raises:
        ValueError: If the experts or the router of a layer do not train; names the first.
    """
    frozen = {layer: None for layer, _, part in _trained(model) if not part.requires_grad}
    if frozen:
        raise ValueError(
            f"The experts of {len(frozen)} layers are frozen, {next(iter(frozen))} among them, so "
            "that they would learn nothing: another option or plugin of the YAML freezes "
            "parameters after experts are added. Remove it, or leave these layers out "
            "(`lora_exclude_modules`)."
        )


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """All that trains by its names in the model: the tensors themselves, no copies."""
    return {name: part.data for name, part in model.named_parameters() if part.requires_grad}


def undo_casts(model: nn.Module, before: Mapping[str, torch.Tensor], fp32: bool) -> None:
    """Give back the precision of what trains; TRL casts it to bf16 on a quantised base.

    Args:
        model: The adapted model, as its trainer gets it.
        before: What `weights` gave before the trainer was made: what was cast gets that back. Empty
            where the trainer wrapped the model; then the values that the cast left are kept, and
            modules that are trained in full get the dtype of the model's own.
        fp32: Whether experts and routers that are not in `before` are to be in fp32.
    """
    import torch

    now = dict(model.named_parameters())
    experts = {name for _, name, _ in _trained(model)}
    for name, parameter in now.items():
        if not parameter.requires_grad or parameter.dtype not in (torch.bfloat16, torch.float16):
            continue
        if (exact := before.get(name)) is not None:
            if exact.dtype != parameter.dtype:
                parameter.data = exact.to(parameter.device)
        elif name in experts:
            if fp32:
                parameter.data = parameter.data.to(torch.float32)
        elif (own := now.get(name.replace(_COPY, _OWN))) is not None and own.is_floating_point():
            parameter.data = parameter.data.to(own.dtype)


def warn_of_dropout(trainer: Any, dropout: float | None) -> None:
    """Say that a trainer switches dropout off, as those of TRL do for preferences and rewards."""
    if dropout and getattr(trainer.args, "disable_dropout", False):
        host.get_logger(__name__).warning(
            "AlphaLoRA: `lora_dropout: %s` does nothing: %s switches all dropout off.",
            dropout,
            type(trainer).__name__,
        )
