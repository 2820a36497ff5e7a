"""From a routed adapter in memory to one low-rank update for each module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from ..adapter import AlphaLoraLayer
from ..evaluation import Moments
from ..spectral.threads import one_thread
from .factors import Factors, compress, fitted_mixing, mean_mixing, mixed
from .lora import pad

__all__ = ["DEFAULT_METHOD", "METHODS", "Method", "build"]

Method = Literal["least-squares", "mean-gate"]
_MIXINGS: Mapping[Method, Callable[[Moments], Tensor]] = {
    "least-squares": fitted_mixing,
    "mean-gate": mean_mixing,
}
METHODS: tuple[Method, ...] = tuple(_MIXINGS)
DEFAULT_METHOD: Method = "least-squares"


def build(
    model: nn.Module,
    moments: Mapping[str, Moments],
    *,
    method: Method = DEFAULT_METHOD,
    rank: int | None = None,
    same_rank: bool = False,
    adapter: str = "default",
    progress: Callable[[Sequence[str]], Callable[[str], None]] | None = None,
) -> dict[str, Factors]:
    """Replace the mixture of every module by one update.

    Args:
        model: The adapted model.
        moments: Module name to what its inputs were like, for every module with a router.
        method: `mean-gate` weighs the experts with their mean gates; `least-squares` fits the
            routed output. Modules with one expert are taken as they are.
        rank: Compress modules of a higher rank to this one.
        same_rank: Pad all modules with zeros to the highest rank.
        adapter: Name of the adapter.
        progress: Takes the modules' names; what it returns is called after each.

    Returns:
        Exact module name to its update, in the model's order.
    """
    updates: dict[str, Factors] = {}
    layers = [
        module
        for module in model.modules()
        if isinstance(module, AlphaLoraLayer) and adapter in module.alphalora_A
    ]
    step = progress([layer.module_name for layer in layers]) if progress else None
    for layer in layers:
        with one_thread():
            updates[layer.module_name] = _replaced(layer, moments, method, rank, adapter)
        if step is not None:
            step(layer.module_name)
    if same_rank:
        most = max(update.rank for update in updates.values())
        updates = {name: pad(update, most) for name, update in updates.items()}
    return updates


def _replaced(
    layer: AlphaLoraLayer,
    moments: Mapping[str, Moments],
    method: Method,
    rank: int | None,
    adapter: str,
) -> Factors:
    a, b = layer.alphalora_A[adapter].detach().cpu(), layer.alphalora_B[adapter].detach().cpu()
    scaling = layer.scaling[adapter]
    second: Tensor | None = None
    if adapter not in layer.alphalora_router:
        update = Factors(a.double(), b.double() * scaling)
    else:
        router = layer.alphalora_router[adapter].detach().cpu()
        seen = moments[layer.module_name]
        mixing = _MIXINGS[method](seen)
        update = mixed(a, b, router, scaling, mixing)
        if seen.tokens:
            second = mixing @ seen.ff @ mixing.T
    return update if rank is None else compress(update, rank, second)
