"""How the gated experts of each module go with its input: second moments over tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapter import AlphaLoraLayer
from ..adapter.functional import route
from ..sensitivity import Sample
from ..threads import one_thread
from .usage import inputs_for


@dataclass
class Moments:
    """Sums over the tokens that one routed module saw, fp64 on the CPU.

    With ``z = A x`` [N*r] the experts' hidden values, ``h`` the same times each expert's gate, and
    ``f = [z; R x]`` [N*r + N] the hidden values and the router's logits. They need no more memory
    for more tokens or a wider layer.

    Attributes:
        ff: Sum of f fᵀ, [N*r + N, N*r + N].
        hf: Sum of h fᵀ, [N*r, N*r + N].
        gates: Sum of the gates, [N].
        tokens: Number of tokens.
    """

    ff: Tensor
    hf: Tensor
    gates: Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, experts: int, rank: int) -> Moments:
        """Moments of no token."""
        width = experts * rank
        features = width + experts
        return cls(
            torch.zeros(features, features, dtype=torch.float64),
            torch.zeros(width, features, dtype=torch.float64),
            torch.zeros(experts, dtype=torch.float64),
        )

    def add(self, x: Tensor, a: Tensor, router: Tensor, top_k: int) -> None:
        """Add tokens.

        Args:
            x: [..., in].
            a: [N*r, in], the experts' down projections stacked.
            router: [N, in].
            top_k: Experts of a token.
        """
        x = x.reshape(-1, x.shape[-1]).to(a.dtype)
        logits = F.linear(x, router)
        gates = route(logits, top_k)[0]
        z = F.linear(x, a).float()  # [T, N*r]
        h = (z.unflatten(-1, (gates.shape[-1], -1)) * gates.unsqueeze(-1)).flatten(-2)
        f = torch.cat([z, logits.float()], -1)
        self.ff += (f.T @ f).double().cpu()
        self.hf += (h.T @ f).double().cpu()
        self.gates += gates.sum(0).double().cpu()
        self.tokens += x.shape[0]

    @property
    def mean_gates(self) -> Tensor:
        """Each expert's gate, averaged over all tokens: [N]; 1 / N where no token was seen."""
        if self.tokens == 0:
            return torch.full_like(self.gates, 1 / len(self.gates))
        return self.gates / self.tokens


@torch.inference_mode()
def calibrate(
    model: nn.Module,
    samples: Sequence[Sample],
    adapter: str = "default",
    progress: Callable[[Sample], None] | None = None,
) -> dict[str, Moments]:
    """Run samples through a model, and sum up what its routed modules see.

    Args:
        model: The adapted model; it is left in evaluation mode.
        samples: Single sequences, without padding.
        adapter: Name of the adapter.
        progress: Called after each sample.

    Returns:
        Module name to moments, for every module with a router.
    """
    model.eval()
    layers = [
        module
        for module in model.modules()
        if isinstance(module, AlphaLoraLayer) and adapter in module.alphalora_router
    ]
    found = {
        layer.module_name: Moments.empty(layer.num_experts[adapter], layer.r[adapter])
        for layer in layers
    }

    def note(layer: AlphaLoraLayer, args: tuple[Any, ...], name: str) -> None:
        weights = layer.alphalora_A[name], layer.alphalora_router[name]
        with one_thread():
            found[layer.module_name].add(args[0], *weights, layer.top_k[name])

    hooks = [layer.register_forward_pre_hook(partial(note, name=adapter)) for layer in layers]
    try:
        for sample in samples:
            model(**inputs_for(model, sample))
            if progress is not None:
                progress(sample)
    finally:
        for hook in hooks:
            hook.remove()
    return found
