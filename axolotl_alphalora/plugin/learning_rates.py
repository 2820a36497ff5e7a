"""Learning rates of their own for the experts' up projections (LoRA+) and for the routers.

The host and PEFT each split parameters for LoRA+ in a way of their own, by the names of LoRA. Here
the finished optimizer's groups are split, so that every optimizer of the host is treated alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

B, ROUTER = "alphalora_B", "alphalora_router"


def ratios(loraplus_lr_ratio: float | None, router_lr_ratio: float) -> dict[str, float]:
    """Factors on the learning rate by the kind of parameter; kinds with factor 1 are left out.

    LoRA+ (arXiv 2402.12354) raises the learning rate of B. The router, like A, acts on the
    layer's input and keeps the base rate, times its own ratio.
    """
    wanted = {B: loraplus_lr_ratio or 1.0, ROUTER: router_lr_ratio}
    return {kind: ratio for kind, ratio in wanted.items() if ratio != 1.0}


def apply_on_creation(trainer: Any, factors: Mapping[str, float]) -> None:
    """Have a trainer split the groups of the optimizer that it will create.

    Args:
        trainer: An HF Trainer, or one derived from it.
        factors: What `ratios` returns.
    """
    create = trainer.create_optimizer

    def create_optimizer(*args: Any, **kwargs: Any) -> Any:
        # The host's own LoRA+ would count a second time.
        given, trainer.args.loraplus_lr_ratio = trainer.args.loraplus_lr_ratio, None
        try:
            optimizer = create(*args, **kwargs)
        finally:
            trainer.args.loraplus_lr_ratio = given
        split_groups(optimizer, trainer.model, factors)
        return optimizer

    trainer.create_optimizer = create_optimizer


def split_groups(
    optimizer: torch.optim.Optimizer, model: nn.Module, factors: Mapping[str, float]
) -> None:
    """Split every group of a fresh optimizer by the kind of parameter.

    Args:
        optimizer: An optimizer that has taken no step.
        model: The model whose parameters it holds.
        factors: Name of a kind of parameter to the factor on its learning rate.

    Raises:
        ValueError: If the optimizer sets its learning rates by itself, or does not hold the
            parameters in its groups.
    """
    kinds = {id(p): _kind(name, factors) for name, p in model.named_parameters() if p.requires_grad}
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        if group.get("lr") is None:
            raise ValueError(
                f"`loraplus_lr_ratio` and `alphalora.router_lr_ratio` multiply a learning rate, "
                f"but {type(optimizer).__name__} sets its own. Use another `optimizer`."
            )
        for kind in (None, *factors):
            params = [p for p in group["params"] if kinds.get(id(p)) == kind]
            if params:
                factor = 1.0 if kind is None else factors[kind]
                groups.append({**group, "params": params, "lr": group["lr"] * factor})
    held = {id(p) for group in groups for p in group["params"]}
    if not all(key in held for key, kind in kinds.items() if kind is not None):
        raise ValueError(
            f"`loraplus_lr_ratio` and `alphalora.router_lr_ratio` split an optimizer's groups, but "
            f"{type(optimizer).__name__} does not hold the experts in them. Use another "
            "`optimizer`."
        )
    optimizer.param_groups[:] = groups


def _kind(name: str, factors: Mapping[str, float]) -> str | None:
    return next((kind for kind in factors if f".{kind}." in name), None)
