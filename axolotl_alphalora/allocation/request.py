"""What a plan is asked for: all that it depends on but layers and evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from ..mixture import Mixture
from .budget import Budget
from .records import check_spend
from .registry import Registered, registry
from .strategy import DEFAULT_SAMPLES, Needs, Options


@dataclass(frozen=True, kw_only=True)
class AllocationRequest:
    """How experts are to be shared out: all that a plan depends on but layers and evidence.

    Attributes:
        base_model: Directory or repository id of the model.
        strategy: Name of the strategy.
        options: Its options, as far as they were given.
        budget: What may be spent; None if nothing was said about it.
        spend: `"experts"`, or `"rank"`: one expert of N times the rank instead of N experts.
        mixture: What a mixture looks like in a layer.
        rank: LoRA rank of an expert, before it is cut.
        optimizer: Axolotl's name of the optimizer, which a memory budget counts.

    Raises:
        ValueError: If `rank` is out of range, `spend` is neither, or `spend="rank"` meets a
            mixture that takes routers or experts to cut; names it.
    """

    base_model: str
    strategy: str = "alphalora"
    options: Mapping[str, Any] = field(default_factory=dict)
    budget: Budget | None = None
    spend: Literal["experts", "rank"] = "experts"
    mixture: Mixture = Mixture()
    rank: int = 8
    optimizer: str | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}: it must be at least 1")
        if self.spend not in ("experts", "rank"):
            raise ValueError(f"spend is {self.spend!r}: it must be experts or rank")
        check_spend(self.spend, self.mixture)

    @property
    def registered(self) -> Registered:
        """The strategy.

        Raises:
            StrategyError: If there is none of that name.
        """
        return registry().get(self.strategy)

    @property
    def needs(self) -> Needs:
        """What the strategy needs to have measured."""
        return self.registered.strategy.needs

    @cached_property
    def settings(self) -> Options:
        """The strategy's options with the defaults filled in.

        Raises:
            ValueError: If an option is unknown or wrong; names strategy and option.
        """
        return self.registered.options(self.options)

    @property
    def drawing(self) -> tuple[int, int]:
        """How many training samples are measured on, and the seed by which they are drawn."""
        options = self.settings
        return getattr(options, "samples", DEFAULT_SAMPLES), getattr(options, "seed", 0)

    @property
    def granularity(self) -> str:
        """In which units the strategy counts experts: blocks, unless its options say otherwise."""
        return getattr(self.settings, "granularity", "block")
