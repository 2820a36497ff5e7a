"""Routers that send everything to one expert, and what to do about them."""

from __future__ import annotations

from collections.abc import Mapping

from ..adapter.usage import RouterUsage

__all__ = ["COLLAPSED", "PATIENCE", "CollapseWatch"]

COLLAPSED = 0.9
"""A router has collapsed where one expert has more than this share of the gates."""

PATIENCE = 50
"""Optimizer steps that it must have lasted for."""


class CollapseWatch:
    """Tells, once for each router, when it has been collapsed for many steps.

    Args:
        coefficient: The adapter's `aux_loss_coef`.
        step: Optimizer steps done before, where a run is resumed.
    """

    def __init__(self, coefficient: float = 0.0, step: int = 0) -> None:
        self._coefficient = coefficient
        self._step = step
        self._since: dict[str, int] = {}
        self._named: set[str] = set()

    def see(self, usage: Mapping[str, RouterUsage], step: int) -> str | None:
        """Take in what the routers decided since the last call.

        Args:
            usage: Router to what it decided.
            step: Optimizer steps done.

        Returns:
            A warning, where there is something new to warn of.
        """
        shares = {name: max(router.gate_share) for name, router in usage.items()}
        collapsed = {name: share for name, share in shares.items() if share > COLLAPSED}
        self._since = {name: self._since.get(name, self._step) for name in collapsed}
        self._step = step
        lasting = {name for name, since in self._since.items() if step - since >= PATIENCE}
        new = sorted(lasting - self._named, key=shares.__getitem__, reverse=True)
        self._named |= lasting
        if not new:
            return None
        worst = usage[new[0]]
        expert = worst.gate_share.index(max(worst.gate_share))
        return (
            f"AlphaLoRA: {len(new)} of {len(usage)} routers have given more than "
            f"{100 * COLLAPSED:.0f} % of their gates to one expert for "
            f"{step - self._since[new[0]]} steps; most in {new[0].rpartition('.')[0]}, where "
            f"expert {expert + 1} of {len(worst.mean_gates)} has {100 * shares[new[0]]:.0f} %. "
            f"Their other experts hardly learn. {self._advice()}, lower the routers' learning "
            "rate (`router_lr_ratio` in the YAML), or give the adapter fewer experts "
            "(`experts_per_block`, `max_experts`)."
        )

    def _advice(self) -> str:
        if self._coefficient == 0.0:
            return "Switch the load-balancing loss on (`aux_loss_coef`, now 0)"
        return f"Raise `aux_loss_coef` (now {self._coefficient:g}; try {10 * self._coefficient:g})"
