"""Mixtures of LoRA experts as they are commonly written: one expert after the other.

Plain implementations to measure against. Both compute what an AlphaLoRA layer does, from the same
parameters, but for the load-balancing loss, which they leave out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axolotl_alphalora.adapter import AlphaLoraLayer
from axolotl_alphalora.adapter.functional import route

__all__ = ["DenseLoop", "DispatchLoop", "replace_layers"]


class _Loop(nn.Module):
    """A linear layer with experts as separate modules, and its router.

    Args:
        layer: The AlphaLoRA layer whose weights to start from.
        dropout: On the experts' input.
    """

    def __init__(self, layer: AlphaLoraLayer, dropout: float) -> None:
        super().__init__()
        self.base_layer = layer.base_layer
        self.number, rank = layer.num_experts["default"], layer.r["default"]
        self.top_k, self.scaling = layer.top_k["default"], layer.scaling["default"]
        self.dropout = nn.Dropout(dropout)
        a, b = layer.alphalora_A["default"], layer.alphalora_B["default"]
        self.down = nn.ParameterList(part.detach().clone() for part in a.split(rank))
        self.up = nn.ParameterList(part.detach().clone() for part in b.split(rank, dim=1))
        routers = layer.alphalora_router
        self.router = nn.Parameter(routers["default"].detach().clone()) if self.number > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the base layer and the experts to [..., in]."""
        result = self.base_layer(x)
        tokens = x.reshape(-1, x.shape[-1]).to(self.down[0].dtype)
        gates = None if self.router is None else route(F.linear(tokens, self.router), self.top_k)[0]
        delta = self.mixture(self.dropout(tokens), gates)
        return result + (self.scaling * delta).reshape(result.shape).to(result.dtype)

    def mixture(self, tokens: Tensor, gates: Tensor | None) -> Tensor:
        """Sum of the gated experts: [T, out]."""
        raise NotImplementedError

    def expert(self, number: int, tokens: Tensor) -> Tensor:
        """One expert on some tokens."""
        return F.linear(F.linear(tokens, self.down[number]), self.up[number])


class DenseLoop(_Loop):
    """Every expert on every token, weighed with gates that are mostly zero, as MoLA does it."""

    def mixture(self, tokens: Tensor, gates: Tensor | None) -> Tensor:
        """Sum of the gated experts: [T, out]."""
        if gates is None:
            return self.expert(0, tokens)
        out: Any = 0
        for number in range(self.number):
            weight = gates[:, number, None].to(tokens.dtype)
            out = out + weight * self.expert(number, tokens)
        return out


class DispatchLoop(_Loop):
    """Each expert on the tokens that were sent to it, gathered and added back."""

    def mixture(self, tokens: Tensor, gates: Tensor | None) -> Tensor:
        """Sum of the gated experts: [T, out]."""
        if gates is None:
            return self.expert(0, tokens)
        out = tokens.new_zeros(tokens.shape[0], self.up[0].shape[0])
        for number in range(self.number):
            (chosen,) = torch.where(gates[:, number] > 0)
            weight = gates[chosen, number, None].to(tokens.dtype)
            out = out.index_add(0, chosen, weight * self.expert(number, tokens[chosen]))
        return out


def replace_layers(model: nn.Module, kind: type[_Loop], dropout: float) -> nn.Module:
    """Put loops in the place of a model's AlphaLoRA layers."""
    for name, module in list(model.named_modules()):
        if isinstance(module, AlphaLoraLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, kind(module, dropout))
    return model
