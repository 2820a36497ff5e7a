"""The allocation strategies by name, and the options each one takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from axolotl_alphalora.allocation.alphalora import allocate
from axolotl_alphalora.settings import QualitySettings

__all__ = ["STRATEGIES", "Budget", "Strategy", "resolve_options"]


@dataclass(frozen=True)
class Budget:
    """How many experts there are to share.

    Attributes:
        total_experts: Sum over the blocks.
        min_experts: Fewest experts of a block.
        max_experts: Most experts of a block; None for no bound.
    """

    total_experts: int
    min_experts: int = 1
    max_experts: int | None = None


@dataclass(frozen=True)
class Strategy:
    """A way of sharing experts between blocks.

    Attributes:
        options: The options it takes, with their defaults. A value given for one must be of its
            default's type; an integer will do for a float. Those of
            :class:`~axolotl_alphalora.settings.QualitySettings` are checked there.
        allocate: Takes block scores, a complete set of options and the budget; returns block name
            to number of experts.
    """

    options: Mapping[str, Any]
    allocate: Callable[[Mapping[str, float], Mapping[str, Any], Budget], dict[str, int]]


def _alphalora(
    scores: Mapping[str, float], options: Mapping[str, Any], budget: Budget
) -> dict[str, int]:
    return allocate(
        scores,
        total=budget.total_experts,
        beta=options["beta"],
        minimum=budget.min_experts,
        maximum=budget.max_experts,
    )


STRATEGIES: dict[str, Strategy] = {
    # How the scores were measured is past when they arrive: it is here to be checked and recorded.
    "alphalora": Strategy({**QualitySettings().as_options(), "beta": 2.5}, _alphalora),
}
"""Strategy name to strategy."""


def resolve_options(strategy: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check a strategy's options and fill in the defaults.

    Args:
        strategy: Name of the strategy.
        given: The options that were set.

    Returns:
        A value for each of the strategy's options, in its order.

    Raises:
        ValueError: If the strategy or an option is unknown, or a value is of a wrong type.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown strategy {strategy!r}: choose one of {_names(STRATEGIES)}")
    defaults = STRATEGIES[strategy].options
    for name, value in given.items():
        if name not in defaults:
            raise ValueError(
                f"strategy {strategy!r} has no option {name!r}: it takes {_names(defaults)}"
            )
        if name in QualitySettings.names():
            continue
        kind = type(defaults[name])
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(
                f"option {name!r} of strategy {strategy!r} must be a {kind.__name__}, not {value!r}"
            )
    try:
        quality = QualitySettings.from_options(given).as_options()
    except ValueError as error:
        raise ValueError(f"strategy {strategy!r}: {error}") from error
    return {
        name: quality[name] if name in quality else type(default)(given.get(name, default))
        for name, default in defaults.items()
    }


def _names(choices: Mapping[str, Any]) -> str:
    return ", ".join(sorted(choices))
