"""Routers that send everything to one expert, and what to do about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..adapter.usage import RouterUsage

COLLAPSED = 0.9
"""A router has collapsed where one expert has more than this share of the gates."""

PATIENCE = 50
"""Optimizer steps that it must have lasted for."""


class CollapseWatch:
    """Warns, once for each router, when it has been collapsed for many steps.

    Args:
        coefficient: The run's `aux_loss_coef`.
    """

    def __init__(self, coefficient: float) -> None:
        self._coefficient = coefficient
        self._step = 0
        self._since: dict[str, int] = {}
        self._named: set[str] = set()

    def start(self, step: int) -> None:
        """Count from a step on, where a run is resumed."""
        self._step = step

    def see(self, usage: Mapping[str, RouterUsage], step: int) -> None:
        """Take in what the routers decided since the last call.

        Args:
            usage: Router to what it decided.
            step: Optimizer steps done.
        """
        shares = {name: max(router.gate_share) for name, router in usage.items()}
        collapsed = {name: share for name, share in shares.items() if share > COLLAPSED}
        self._since = {name: self._since.get(name, self._step) for name in collapsed}
        self._step = step
        lasting = {name for name, since in self._since.items() if step - since >= PATIENCE}
        new = sorted(lasting - self._named, key=shares.__getitem__, reverse=True)
        self._named |= lasting
        if new:
            worst = usage[new[0]]
            expert = worst.gate_share.index(max(worst.gate_share))
            _logger().warning(
                "AlphaLoRA: %d of %d routers have given more than %.0f %% of their gates to one "
                "expert for %d steps; most in %s, where expert %d of %d has %.0f %%. Their other "
                "experts hardly learn. %s, lower the routers' learning rate "
                "(`alphalora.router_lr_ratio`), or plan fewer experts "
                "(`alphalora.experts_per_block`, `alphalora.max_experts`).",
                len(new),
                len(usage),
                100 * COLLAPSED,
                step - self._since[new[0]],
                new[0].rpartition(".")[0],
                expert + 1,
                len(worst.mean_gates),
                100 * shares[new[0]],
                self._advice(),
            )

    def _advice(self) -> str:
        if self._coefficient == 0.0:
            return "Switch the load-balancing loss on (`alphalora.aux_loss_coef`, now 0)"
        return (
            f"Raise `alphalora.aux_loss_coef` (now {self._coefficient:g}; try "
            f"{10 * self._coefficient:g})"
        )


def _logger() -> Any:
    from axolotl.utils.logging import get_logger

    return get_logger(__name__)
