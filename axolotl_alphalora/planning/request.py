"""What a plan is asked for, and which layers that concerns."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..allocation import Options, Plan, granularity_of, registry
from ..spectral import BaseModel, Cache, default_cache
from .targets import Targets

__all__ = ["PlanRequest", "base_model", "check_plan", "layers"]


@dataclass(frozen=True)
class PlanRequest:
    """Everything a plan depends on but the training data, as plain values.

    Attributes:
        base_model: Directory or hub id.
        revision: Revision of a hub model.
        trust_remote_code: Whether the model's own code may run.
        targets: The layers that get experts.
        rank: Rank of one expert.
        top_k: Experts used per token.
        strategy: Name of the allocation strategy.
        options: Its options, as far as they were given.
        budget: Fields of :class:`~axolotl_alphalora.allocation.Budget`, as far as they were given.
        spend: ``"experts"`` or ``"rank"``.
        optimizer: Axolotl's name of the optimizer, for a memory budget.
    """

    base_model: str
    targets: Targets
    revision: str | None = None
    trust_remote_code: bool = False
    rank: int = 8
    top_k: int = 2
    strategy: str = "alphalora"
    options: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, Any] = field(default_factory=dict)
    spend: str = "experts"
    optimizer: str | None = None

    @property
    def needs(self) -> str:
        """What the strategy needs to have measured: nothing, quality or sensitivity."""
        return registry().get(self.strategy).strategy.needs

    @property
    def settings(self) -> Options:
        """The strategy's options with the defaults filled in.

        Raises:
            ValueError: If an option is unknown or wrong; names strategy and option.
        """
        return registry().get(self.strategy).options(self.options)

    @property
    def granularity(self) -> str:
        """In which units the strategy counts experts."""
        return granularity_of(self.settings)

    @property
    def building(self) -> dict[str, Any]:
        """The arguments of :func:`~axolotl_alphalora.allocation.build_plan` that are known."""
        return {
            "base_model": self.base_model,
            "strategy": self.strategy,
            "options": self.options,
            "budget": self.budget,
            "top_k": self.top_k,
            "rank": self.rank,
            "spend": self.spend,
            "optimizer": self.optimizer,
        }


def base_model(request: PlanRequest, cache: Cache | None = None) -> BaseModel:
    """The files of the request's base model."""
    return BaseModel(
        request.base_model,
        request.revision,
        request.trust_remote_code,
        default_cache() if cache is None else cache,
    )


def layers(request: PlanRequest, base: BaseModel | None = None) -> dict[str, tuple[int, int]]:
    """Exact names and (out, in) features of the layers that get experts.

    Raises:
        TypeError: If a target is no linear layer; names the module.
        ValueError: If the model cannot be opened, or a target matches nothing; names it.
    """
    base = base or base_model(request)
    return base.layers(request.targets.resolve, request.targets.identity)


def check_plan(plan: Plan, request: PlanRequest) -> None:
    """Check that a saved plan is one for this model and these settings.

    Raises:
        ValueError: Names the first difference.
    """
    if plan.rank != request.rank:
        raise ValueError(f"the plan is for rank {plan.rank}, but lora_r is {request.rank}")
    if plan.top_k != request.top_k:
        raise ValueError(
            f"the plan says top_k {plan.top_k}, but alphalora.top_k is {request.top_k}"
        )
    if plan.base_model != request.base_model:
        warnings.warn(
            f"The plan was made for {plan.base_model} and is used for {request.base_model}.",
            stacklevel=2,
        )
    shapes = layers(request)
    planned = {module.name: module.shape for module in plan.modules}
    for name, shape in shapes.items():
        if name not in planned:
            raise ValueError(f"target module {name} is not in the plan (base_model, targets?)")
        if tuple(planned[name]) != shape:
            raise ValueError(f"{name} is {shape} in the model, but {planned[name]} in the plan")
    stray = next((name for name in planned if name not in shapes), None)
    if stray is not None:
        raise ValueError(f"the plan has {stray}, which is no target module here")
