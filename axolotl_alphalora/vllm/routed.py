"""What a routed mixture adds to the output of a linear layer that may hold several projections.

Plain torch: T tokens (any leading shape), a layer of the projections i = 1 ... m that read the same
x, each with experts, ranks and a router of its own. The first products of all of them are one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..mixture import Mixture

DOWN, ROUTER, UP = "alphalora_down", "alphalora_router", "alphalora_up"
"""Names of a layer's buffers: one of the first, one a group of the second, one a projection of the
third."""


@dataclass(frozen=True)
class Projection:
    """One original linear layer in a layer that may hold several.

    Attributes:
        out_features: Its output features that the layer computes.
        planned: Its experts as planned; 0 where it has none.
        rank: The rank of each, before it is cut.
        mixture: The shape of its mixture.
    """

    out_features: int
    planned: int
    rank: int
    mixture: Mixture

    @property
    def shape(self) -> tuple[int, int, Mixture]:
        """What projections share that can be computed together."""
        return self.planned, self.rank, self.mixture

    @property
    def hidden(self) -> int:
        """Features of A x."""
        return self.rank if self.mixture.share_a and self.planned else self.planned * self.rank

    @property
    def experts(self) -> int:
        """Experts of the layer, cut."""
        return self.mixture.experts(self.planned)

    @property
    def routing(self) -> int:
        """Features of what the router computes of x: its logits, or U x of one of low rank."""
        return (self.mixture.router_rank or self.experts) if self.experts > 1 else 0


@dataclass(frozen=True)
class Group:
    """Neighbouring projections of one shape.

    Attributes:
        first: One of them.
        number: How many they are.
        hidden: Where their A x begins.
        routing: Where their routers' part begins.
        router: Name of the buffer with their V [number, experts, router_rank], or None.
    """

    first: Projection
    number: int
    hidden: int
    routing: int
    router: str | None


class RoutedExperts:
    """The experts of a linear layer: `s sum_e g_e B_e A_e x` of each projection, side by side.

    The layer keeps what they need as buffers, see `buffers`, with s in B.

    Args:
        projections: Those of the layer, in its order.
        reduce: Sums a tensor over the processes among which the layer's input features are
            divided; None where they are whole.
        columns: Part of the features of A x that this process multiplies with B, where the layer's
            caller sums the outputs of all processes; None for all of them.
    """

    def __init__(
        self,
        projections: Sequence[Projection],
        reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
        columns: slice | None = None,
    ) -> None:
        self.projections = tuple(projections)
        self.reduce, self.columns = reduce, columns
        adapted = [each for each in projections if each.planned]
        self.groups: list[Group] = []
        hidden, routing = 0, sum(each.hidden for each in adapted)
        for _, members in groupby(adapted, key=lambda each: each.shape):
            alike = list(members)
            low = alike[0].routing and alike[0].mixture.router_rank
            name = f"{ROUTER}_{len(self.groups)}" if low else None
            self.groups.append(Group(alike[0], len(alike), hidden, routing, name))
            hidden += sum(each.hidden for each in alike)
            routing += sum(each.routing for each in alike)

    def buffers(
        self, tensors: Sequence[dict[str, torch.Tensor]], scalings: Sequence[float]
    ) -> dict[str, torch.Tensor]:
        """What the layer must keep.

        Args:
            tensors: Of each projection with experts, what `Mixture.tensors` names: the rows of B
                that this process has, and its columns of what multiplies x.
            scalings: The factor on the output of an expert of each of them.

        Returns:
            Buffer to tensor.
        """
        lows = [t["alphalora_router"] for t in tensors if "alphalora_router_down" in t]
        reads_x = [t.get("alphalora_router_down", t.get("alphalora_router")) for t in tensors]
        routers = [each for each in reads_x if each is not None]
        found = {DOWN: torch.cat([*(t["alphalora_A"] for t in tensors), *routers])}
        for group in self.groups:
            if group.router is not None:
                found[group.router] = torch.stack(lows[: group.number])
                del lows[: group.number]
        adapted = [i for i, each in enumerate(self.projections) if each.planned]
        for i, each, scaling in zip(adapted, tensors, scalings, strict=True):
            up = each["alphalora_B"].float() * scaling
            found[f"{UP}_{i}"] = up if self.columns is None else up[:, self.columns].contiguous()
        return found

    def add(self, output: torch.Tensor, x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        """Add to a layer's output what its experts make of x.

        Args:
            output: [..., sum of out_features].
            x: [..., in].
            layer: Has the `buffers`.

        Returns:
            [..., sum of out_features], in the dtype of `output`.
        """
        down = getattr(layer, DOWN)
        stacked = F.linear(x.to(down.dtype), down)
        if self.reduce is not None:
            stacked = self.reduce(stacked)
        hidden = iter([h for group in self.groups for h in self._hidden(stacked, group, layer)])
        parts = []
        for i, each in enumerate(self.projections):
            if each.planned:
                h = next(hidden)
                h = h if self.columns is None else h[..., self.columns]
                parts.append(F.linear(h, getattr(layer, f"{UP}_{i}")))
            else:
                parts.append(output.new_zeros(*output.shape[:-1], each.out_features))
        added = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return output + added.to(output.dtype)

    def _hidden(
        self, stacked: torch.Tensor, group: Group, layer: nn.Module
    ) -> Sequence[torch.Tensor]:
        """`g_e A_e x` of all experts, [..., planned * rank], of each projection of a group."""
        one, number = group.first, group.number
        segments, planned = one.mixture.segments, one.planned
        hidden = stacked[..., group.hidden : group.hidden + number * one.hidden]
        if one.experts == 1:
            return hidden.unflatten(-1, (number, one.rank)).unbind(-2)
        logits = stacked[..., group.routing : group.routing + number * one.routing]
        logits = logits.unflatten(-1, (number, one.routing))
        if group.router is not None:
            logits = torch.einsum("...pr,per->...pe", logits, getattr(layer, group.router))
        gates = gates_of(logits, one.mixture.active(planned)).to(hidden.dtype)
        read = 1 if one.mixture.share_a else planned  # experts as planned that have an A
        hidden = hidden.unflatten(-1, (number, read, segments, one.rank // segments))
        weighed = hidden * gates.unflatten(-1, (planned, segments)).unsqueeze(-1)
        return weighed.flatten(-3).unbind(-2)


def gates_of(logits: torch.Tensor, active: int) -> torch.Tensor:
    """Gates of experts: a softmax over the chosen ones, and zero elsewhere.

    One expert out of several keeps its probability among all, as it does in training.

    Args:
        logits: [..., N], any floating dtype.
        active: Experts that a token uses, from 1 to N.

    Returns:
        [..., N] in fp32.
    """
    if active == logits.shape[-1]:
        return logits.softmax(-1, torch.float32)
    kept, chosen = logits.topk(active, -1)
    if active == 1:
        kept = logits.softmax(-1, torch.float32).gather(-1, chosen)
    else:
        kept = kept.softmax(-1, torch.float32)
    return torch.zeros_like(logits, dtype=torch.float32).scatter(-1, chosen, kept)


class RoutedMethod:
    """In the place of a layer's `quant_method`: what that computes, plus what the experts add.

    vLLM's linear layers call it with x whole, or with this process's part of its features. It is
    no subclass, so that code which looks for a certain method and goes around it finds none.

    Args:
        inner: The layer's own method.
        experts: What is added; the layer has its buffers.
    """

    def __init__(self, inner: Any, experts: RoutedExperts) -> None:
        self.inner, self.experts = inner, experts

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.inner, name)

    def apply(
        self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The layer's output, [..., out]; x is [..., in]."""
        return self.experts.add(self.inner.apply(layer, x, bias), x, layer)
