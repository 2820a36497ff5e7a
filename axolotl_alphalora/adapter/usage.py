"""What routers decide, summed over tokens on the device and read only when asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from statistics import fmean, pstdev

import torch

from ..hosts.torch import add_each

DEAD = 0.1
"""An expert with less than this part of its fair share of the tokens counts as dead."""

Reduce = Callable[[torch.Tensor], torch.Tensor]


def router_sums(
    gates: torch.Tensor,
    probabilities: torch.Tensor,
    selected: torch.Tensor,
    valid: torch.Tensor | None,
) -> torch.Tensor:
    """Sum one router's decisions over tokens.

    Args:
        gates: [T, N], fp32.
        probabilities: [T, N], fp32, the full softmax.
        selected: [T, N], 1 for the chosen experts, else 0.
        valid: [T], 1 for real tokens and 0 for padding, or None when all are real.

    Returns:
        [4N + 2], fp32: slots, gates, probabilities and terms of the entropy (in nats) of each
        expert, largest gates, tokens. Only the probabilities carry a gradient.
    """
    fixed, terms = gates.detach(), torch.special.entr(probabilities.detach())
    weight = gates.new_ones(len(gates), 1) if valid is None else valid.to(gates).unsqueeze(-1)
    columns = torch.cat([selected, fixed, probabilities, terms, fixed.amax(-1, True), weight], -1)
    # No matrix product: autocast would round its counts to 16 bits.
    return (columns if valid is None else columns * weight).sum(0)


@dataclass(frozen=True)
class RouterUsage:
    """What one router of N experts decided over some tokens.

    Attributes:
        tokens: Number of tokens.
        top_k: Experts of a token.
        token_share: Each expert's share of all slots (k for each token).
        mean_gates: Each expert's gate, averaged over all tokens; 0 counts where it is not chosen.
        entropy: Entropy of the router's distribution, averaged over tokens, divided by ln N.
        top_gate: Largest gate of a token, averaged over tokens.
    """

    tokens: int
    top_k: int
    token_share: tuple[float, ...]
    mean_gates: tuple[float, ...]
    entropy: float
    top_gate: float

    @classmethod
    def of(cls, sums: list[float], top_k: int) -> RouterUsage:
        """Read the sums of at least one token, as `router_sums` returns them."""
        top, tokens = sums[-2:]
        number = (len(sums) - 2) // 4
        slots, gates, terms = (sums[part * number : (part + 1) * number] for part in (0, 1, 3))
        return cls(
            tokens=round(tokens),
            top_k=top_k,
            token_share=tuple(value / (tokens * top_k) for value in slots),
            mean_gates=tuple(value / tokens for value in gates),
            entropy=sum(terms) / tokens / math.log(number),
            top_gate=top / tokens,
        )

    @property
    def chooses(self) -> bool:
        """Whether there is a choice: otherwise every expert has the same share of the tokens."""
        return self.top_k < len(self.token_share)

    @property
    def load_cv(self) -> float:
        """Coefficient of variation of the token shares: 0 where all are equal."""
        return pstdev(self.token_share) * len(self.token_share)

    @property
    def load_max(self) -> float:
        """Largest token share in units of the mean share: 1 where all are equal, N / k at most."""
        return max(self.token_share) * len(self.token_share)

    @property
    def dead(self) -> tuple[int, ...]:
        """The experts with less than `DEAD` of the fair share."""
        fair = 1.0 / len(self.token_share)
        return tuple(e for e, share in enumerate(self.token_share) if share < DEAD * fair)

    @property
    def gate_share(self) -> tuple[float, ...]:
        """Each expert's share of all gates."""
        total = sum(self.mean_gates)
        return tuple(gate / total for gate in self.mean_gates)


@dataclass
class MeanMeter:
    """Weighted mean of a scalar that stays on its device until it is read."""

    total: torch.Tensor | None = None
    weight: torch.Tensor | float = 0.0

    def add(self, value: torch.Tensor, weight: torch.Tensor | float) -> None:
        """Add a value that counts as much as its weight says."""
        if isinstance(weight, torch.Tensor):
            weight = weight.to(value.device)
        value = value * weight
        self.total = value if self.total is None else self.total.to(value.device) + value
        self.weight = self.weight + weight

    def pop(self, reduce: Reduce | None) -> float | None:
        """The mean since the last call; None where nothing has a weight."""
        total = torch.zeros(()) if self.total is None else self.total.float()
        sums = torch.stack([total, torch.as_tensor(self.weight).to(total)])
        self.total, self.weight = None, 0.0
        total, weight = (sums if reduce is None else reduce(sums)).tolist()
        # Micro-batches without a target have no weight.
        return None if weight == 0.0 else total / weight


class UsageMeter:
    """Sums over forward passes, router by router, that stay on their device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, sums: Mapping[str, torch.Tensor]) -> None:
        """Add the sums of one forward pass, by router."""
        new = {name: value for name, value in sums.items() if name not in self._sums}
        old = [name for name in sums if name not in new]
        if old:
            for name in old:
                if self._sums[name].is_inference():  # outside of that mode its copy is none
                    self._sums[name] = self._sums[name].clone()
            added = [sums[name].to(self._sums[name].device) for name in old]
            add_each([self._sums[name] for name in old], added)
        self._sums |= {name: value.clone() for name, value in new.items()}

    def pop(
        self, routers: Mapping[str, tuple[int, int]], reduce: Reduce | None = None
    ) -> dict[str, RouterUsage]:
        """Read what was decided since the last call; waits for the device once.

        Args:
            routers: Name to number of experts and experts of a token, for all routers there are,
                so that every process of a distributed run has the same list.
            reduce: Sums a flat tensor over processes.

        Returns:
            Name to usage, for the routers that saw a token in any process.
        """
        sums, self._sums = self._sums, {}
        if not routers:
            return {}
        device = next(iter(sums.values())).device if sums else torch.device("cpu")
        sizes = [4 * number + 2 for number, _ in routers.values()]
        parts = [
            sums[name].to(device) if name in sums else torch.zeros(size, device=device)
            for name, size in zip(routers, sizes, strict=True)
        ]
        flat = torch.cat(parts)
        values = iter((flat if reduce is None else reduce(flat)).tolist())
        found = {}
        for (name, (_, top_k)), size in zip(routers.items(), sizes, strict=True):
            numbers = list(islice(values, size))
            if numbers[-1] > 0:
                found[name] = RouterUsage.of(numbers, top_k)
        return found


def summarise(usages: Iterable[RouterUsage]) -> dict[str, float]:
    """Summarise routers in a few numbers, each the mean over routers.

    Load and dead experts are those of the routers that choose: with k of k experts there is
    nothing to be uneven.

    Returns:
        `router_entropy`, `top_gate`, and where a router chooses `load_cv`, `load_max` and
        `dead_experts`, the share of those routers' experts that are dead.
    """
    routers = list(usages)
    if not routers:
        return {}
    numbers = {
        "router_entropy": fmean(usage.entropy for usage in routers),
        "top_gate": fmean(usage.top_gate for usage in routers),
    }
    choosing = [usage for usage in routers if usage.chooses]
    if choosing:
        experts = sum(len(usage.token_share) for usage in choosing)
        numbers |= {
            "load_cv": fmean(usage.load_cv for usage in choosing),
            "load_max": fmean(usage.load_max for usage in choosing),
            "dead_experts": sum(len(usage.dead) for usage in choosing) / experts,
        }
    return numbers


def combine(usages: Iterable[RouterUsage]) -> RouterUsage:
    """Join what one router decided over several sets of tokens.

    Raises:
        ValueError: If there is none.
    """
    parts = list(usages)
    if not parts:
        raise ValueError("There is nothing to combine.")
    weights = [part.tokens for part in parts]

    def mean(values: Iterable[float]) -> float:
        return fmean(values, weights)

    return RouterUsage(
        tokens=sum(weights),
        top_k=parts[0].top_k,
        token_share=tuple(map(mean, zip(*(part.token_share for part in parts), strict=True))),
        mean_gates=tuple(map(mean, zip(*(part.mean_gates for part in parts), strict=True))),
        entropy=mean(part.entropy for part in parts),
        top_gate=mean(part.top_gate for part in parts),
    )
