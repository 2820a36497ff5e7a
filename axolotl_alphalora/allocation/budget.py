"""How much an allocation may spend."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Budget"]

_KINDS = ("experts_per_block", "total_experts", "total_parameters", "memory_mib")
_WHOLE = ("total_experts", "total_parameters")


@dataclass(frozen=True)
class Budget:
    """A limit in one of four currencies, and bounds on the experts of a module.

    At most one of the first four is given; a strategy that brings its own counts needs none.

    Attributes:
        experts_per_block: Mean number of experts over the decoder blocks.
        total_experts: Sum of the experts over the blocks.
        total_parameters: Trainable parameters of all experts and routers.
        memory_mib: MiB of the adapter's weights, gradients and optimiser state in training.
        min_experts: Fewest experts of a module.
        max_experts: Most experts of a module; None for no bound.

    Raises:
        ValueError: If more than one limit is given, or a number is not usable.
    """

    experts_per_block: float | None = None
    total_experts: int | None = None
    total_parameters: int | None = None
    memory_mib: float | None = None
    min_experts: int = 1
    max_experts: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        given = [name for name in _KINDS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(given)} are both budgets: give only one of {', '.join(_KINDS)}"
            )
        for name in given:
            _check_amount(name, getattr(self, name))
        _check_bound("min_experts", self.min_experts, 0)
        if self.max_experts is not None:
            _check_bound("max_experts", self.max_experts, max(1, self.min_experts))

    @property
    def kind(self) -> str | None:
        """The name of the limit that is given, or None."""
        return next((name for name in _KINDS if getattr(self, name) is not None), None)

    @property
    def amount(self) -> float | None:
        """The limit that is given, in its own unit, or None."""
        return None if self.kind is None else getattr(self, self.kind)


def _check_amount(name: str, value: float) -> None:
    whole = name in _WHOLE
    accepted = int if whole else (int, float)
    usable = isinstance(value, accepted) and not isinstance(value, bool)
    if not (usable and math.isfinite(value) and value > 0):
        kind = "a whole number above 0" if whole else "a finite number above 0"
        raise ValueError(f"{name} must be {kind}, not {value!r}")


def _check_bound(name: str, value: int, lowest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        reason = " (min_experts)" if name == "max_experts" and lowest > 1 else ""
        raise ValueError(
            f"{name} must be a whole number of at least {lowest}{reason}, not {value!r}"
        )
