"""What the host and its trainers do to experts: freeze them, cast them, switch dropout off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from . import host

if TYPE_CHECKING:
    import torch
    from torch import nn


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
    """Experts and routers by their names in the model: the tensors themselves, no copies."""
    return {name: parameter.data for _, name, parameter in _trained(model)}


def keep_fp32(model: nn.Module, before: Mapping[str, torch.Tensor]) -> None:
    """Put experts and routers back to fp32, which TRL casts to bf16 on a quantised base.

    Args:
        model: The adapted model, as its trainer gets it.
        before: What `weights` gave before the trainer was made. What is not in it keeps the
            values that the cast left.
    """
    import torch

    for _, name, parameter in _trained(model):
        if parameter.dtype in (torch.bfloat16, torch.float16):
            exact = before.get(name, parameter.data)
            parameter.data = exact.to(parameter.device, torch.float32)


def warn_of_dropout(trainer: Any, dropout: float | None) -> None:
    """Say that a trainer switches dropout off, as those of TRL do for preferences and rewards."""
    if dropout and getattr(trainer.args, "disable_dropout", False):
        host.get_logger(__name__).warning(
            "AlphaLoRA: `lora_dropout: %s` does nothing: %s switches all dropout off.",
            dropout,
            type(trainer).__name__,
        )
