"""What may be spent on experts, and what experts cost in that currency.

Knows nothing of strategies: those ask `Costs` what a number of experts comes to.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Literal

from ..blocks import group_by_block
from ..mixture import Mixture
from .optimizers import state_bytes

KINDS = ("experts_per_block", "total_experts", "total_parameters", "memory_mib")
_WHOLE = ("total_experts", "total_parameters")
_MIB = 2**20
_WEIGHT_AND_GRADIENT = 4 + 4


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
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(given)} are both budgets: give only one of {', '.join(KINDS)}"
            )
        for name in given:
            _check_amount(name, getattr(self, name))
        _check_bound("min_experts", self.min_experts, 0)
        if self.max_experts is not None:
            _check_bound("max_experts", self.max_experts, max(1, self.min_experts))

    @property
    def kind(self) -> str | None:
        """The name of the limit that is given, or None."""
        return next((name for name in KINDS if getattr(self, name) is not None), None)

    @property
    def recorded_kind(self) -> Literal["total_experts", "total_parameters", "memory_mib"] | None:
        """The same as a plan records it: a mean number of experts is turned into a total."""
        return "total_experts" if self.kind == "experts_per_block" else self.kind  # type: ignore

    @property
    def named(self) -> list[str]:
        """Names of what differs from the defaults; `min_experts` if nothing does."""
        changed = [
            field.name for field in fields(self) if getattr(self, field.name) != field.default
        ]
        return changed or ["min_experts"]

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


_Kind = int | tuple[int, int]
"""What sets a module's costs: what each expert costs, or its shape."""


class Costs:
    """Costs of experts in whole numbers, so that a budget is met exactly and not nearly.

    The currency is the budget's:

    - experts (also without a budget): a block whose modules have n experts each costs n whatever
      its size, so a module costs n divided by the modules of its block. These fractions are
      brought to whole numbers by their common denominator.
    - parameters: the trainable ones of experts and routers.
    - memory: bytes of the adapter's weights and gradients (float32) and of the optimiser's state,
      see `state_bytes`. Activations and the base
      model are not in it.

    Parameters and memory are those of the tensors that a module trains, as
    `Mixture.tensors` says for the shape of the mixture. With
    `spend="rank"` a module whose number is n gets one expert of rank n * `rank` and no router,
    instead of n experts of rank `rank`.

    Attributes:
        limit: What may be spent, in the same whole numbers as the costs; None without a budget.
        asked: The same as `amount` would give it, but as it was asked for.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        units: Mapping[str, Sequence[str]],
        rank: int,
        spend: Literal["experts", "rank"],
        budget: Budget,
        optimizer: str | None = None,
        mixture: Mixture | None = None,
    ) -> None:
        """Work out costs and the limit.

        Args:
            shapes: Name of every linear layer to its output features and input features.
            units: Name of a unit to the modules that share its number; each module is in one unit.
            rank: LoRA rank of one expert.
            spend: Whether a number means experts or multiples of the rank.
            budget: What may be spent, and in which currency.
            optimizer: Name of the optimiser; only `memory_mib` needs it.
            mixture: What a mixture of experts looks like in a layer; None for the usual one.

        Raises:
            ValueError: If the units do not hold every module once, the budget rounds to no expert,
                or the memory of the optimiser is not known.
        """
        _check_units(shapes, units)
        self._rank = rank
        self._spend = spend
        self._budget = budget
        self._optimizer = optimizer or ""
        self._mixture = mixture or Mixture()
        self._denominator = 1
        self._kinds: dict[str, _Kind] = {
            name: (int(shape[0]), int(shape[1])) for name, shape in shapes.items()
        }
        if budget.kind not in ("total_parameters", "memory_mib"):
            blocks = group_by_block(shapes)
            self._denominator = math.lcm(*(len(block) for block in blocks.values()))
            for block in blocks.values():
                self._kinds.update(dict.fromkeys(block, self._denominator // len(block)))
        if budget.kind == "memory_mib":
            if optimizer is None:
                raise ValueError("memory_mib needs the optimizer's name: its state is part of it")
            state_bytes(optimizer, (1, 1))
        self.asked = _asked(budget, shapes)
        unit = _MIB if budget.kind == "memory_mib" else self._denominator
        self.limit = None if self.asked is None else math.floor(self.asked * unit)
        self._units = {
            unit: tuple(Counter(self._kinds[name] for name in names).items())
            for unit, names in units.items()
        }
        self._tables: dict[tuple[tuple[_Kind, int], ...], list[int]] = {
            content: [0] for content in self._units.values()
        }

    def of(self, unit: str, number: int) -> int:
        """Return what a unit costs, which never falls as the number grows.

        The state of an 8-bit optimiser shrinks where a tensor becomes large enough to be
        quantised. There the cost stays what it was for fewer, so that it is an upper bound.
        """
        content = self._units[unit]
        table = self._tables[content]
        while len(table) <= number:
            cost = sum(times * self._module(kind, len(table)) for kind, times in content)
            table.append(max(table[-1], cost))
        return table[number]

    def total(self, counts: Mapping[str, int]) -> int:
        """Return what all modules cost together.

        Args:
            counts: Name of every module that is adapted to its number.
        """
        return sum(self._module(self._kinds[name], number) for name, number in counts.items())

    def amount(self, cost: int) -> float:
        """Return a cost in the budget's own unit: experts, parameters or MiB.

        Experts are a whole number wherever the cost is one.
        """
        if self._budget.kind == "memory_mib":
            return cost / _MIB
        return whole_if_exact(Fraction(cost, self._denominator))

    def check_minimum(self, minimum: int) -> None:
        """Check that the limit pays for the smallest allocation.

        Raises:
            ValueError: If it does not; the message says what would do.
        """
        lowest = sum(self.of(unit, minimum) for unit in self._units)
        if self.limit is not None and lowest > self.limit:
            kind = self._budget.kind
            lower = (
                "min_experts"
                if kind in ("experts_per_block", "total_experts")
                else "the rank or min_experts"
            )
            total = f", {_number(self.asked)} in all" if kind == "experts_per_block" else ""
            raise ValueError(
                f"{kind} is {self._budget.amount}{total}, but the least that "
                f"min_experts {minimum} allows is {_number(self.amount(lowest))}: "
                f"raise {kind}, or lower {lower}"
            )

    def _module(self, kind: _Kind, number: int) -> int:
        if isinstance(kind, int):
            return kind * number
        out_features, in_features = kind
        experts, rank = number, self._rank
        if self._spend == "rank":
            experts, rank = min(number, 1), number * self._rank
        if self._budget.kind == "total_parameters":
            return self._mixture.parameters(in_features, out_features, experts, rank)
        tensors = self._mixture.tensors(in_features, out_features, experts, rank)
        return sum(
            _WEIGHT_AND_GRADIENT * rows * columns + state_bytes(self._optimizer, (rows, columns))
            for rows, columns in tensors.values()
        )


def _check_units(shapes: Mapping[str, tuple[int, int]], units: Mapping[str, Sequence[str]]) -> None:
    seen: set[str] = set()
    for unit, names in units.items():
        if not names:
            raise ValueError(f"unit {unit!r} has no modules")
        for name in names:
            if name not in shapes:
                raise ValueError(f"module {name!r} of unit {unit!r} has no shape")
            if name in seen:
                raise ValueError(f"module {name!r} is in more than one place of the units")
            seen.add(name)
    for name in shapes:
        if name not in seen:
            raise ValueError(f"module {name!r} is in no unit")


def _asked(budget: Budget, shapes: Mapping[str, tuple[int, int]]) -> float | None:
    if budget.experts_per_block is None:
        return budget.amount
    blocks = len(group_by_block(shapes))
    total = round(budget.experts_per_block * blocks)
    if total == 0:
        raise ValueError(
            f"experts_per_block is {budget.experts_per_block}: over {blocks} blocks that rounds "
            "to no expert at all"
        )
    return total


def whole_if_exact(value: Fraction) -> float:
    """Return a fraction as an integer where it is one, as a float elsewhere."""
    return value.numerator if value.denominator == 1 else float(value)


def _number(value: float | None) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
