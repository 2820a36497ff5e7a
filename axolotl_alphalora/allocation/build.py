"""Building a plan from measured blocks and modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from axolotl_alphalora.allocation.plan import BlockPlan, ModulePlan, Plan
from axolotl_alphalora.allocation.strategies import STRATEGIES, Budget, resolve_options
from axolotl_alphalora.blocks import block_name, group_by_block

if TYPE_CHECKING:
    from axolotl_alphalora.spectral.quality import MatrixQuality

__all__ = ["build_plan", "resolve_budget"]


def resolve_budget(
    blocks: int,
    *,
    total_experts: int | None = None,
    experts_per_block: float | None = None,
    min_experts: int = 1,
    max_experts: int | None = None,
) -> Budget:
    """Turn the two ways of stating a budget into one.

    Args:
        blocks: Number of decoder blocks.
        total_experts: Experts to share between the blocks.
        experts_per_block: Their mean number; the total is the nearest whole number.
        min_experts: Fewest experts of a block.
        max_experts: Most experts of a block; None for no bound.

    Raises:
        ValueError: If not exactly one of ``total_experts`` and ``experts_per_block`` is given.
    """
    if total_experts is None and experts_per_block is not None:
        total_experts = round(experts_per_block * blocks)
    elif total_experts is None or experts_per_block is not None:
        raise ValueError("give exactly one of total_experts and experts_per_block")
    return Budget(total_experts, min_experts, max_experts)


def build_plan(
    *,
    base_model: str,
    weights: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, int]],
    scores: Mapping[str, float],
    qualities: Iterable[MatrixQuality] = (),
    intervals: Mapping[str, tuple[float, float]] | None = None,
    strategy: str = "alphalora",
    options: Mapping[str, Any] | None = None,
    total_experts: int | None = None,
    experts_per_block: float | None = None,
    min_experts: int = 1,
    max_experts: int | None = None,
    top_k: int = 2,
    rank: int = 8,
) -> Plan:
    """Share experts between decoder blocks and write down the plan.

    Every module of a block gets the block's number of experts.

    Args:
        base_model: Directory or repository id of the model.
        weights: What the source of the weights says about itself: plain JSON values.
        shapes: Exact name of every linear layer to adapt to its output features and input
            features, as the layer is applied.
        scores: Block name to score, one for each block that the modules belong to.
        qualities: What was measured of the modules, to be recorded; those not in ``shapes`` are
            left out.
        intervals: Block name to the interval of its score, to be recorded.
        strategy: Name of the strategy, see
            :data:`~axolotl_alphalora.allocation.strategies.STRATEGIES`.
        options: The strategy's options that differ from the defaults.
        total_experts: Experts to share between the blocks.
        experts_per_block: Their mean number, instead of the total.
        min_experts: Fewest experts of a block.
        max_experts: Most experts of a block; None for no bound.
        top_k: Experts that a token is sent to, where there are as many.
        rank: LoRA rank of every expert.

    Raises:
        ValueError: If the strategy, an option or the budget is not usable, ``top_k`` or ``rank``
            is below 1, or the scores' blocks are not the modules' blocks.
    """
    for key, value in (("top_k", top_k), ("rank", rank)):
        if value < 1:
            raise ValueError(f"{key} is {value}: it must be at least 1")
    blocks = list(group_by_block(shapes))
    _check_blocks(blocks, scores)
    settings = resolve_options(strategy, options or {})
    budget = resolve_budget(
        len(blocks),
        total_experts=total_experts,
        experts_per_block=experts_per_block,
        min_experts=min_experts,
        max_experts=max_experts,
    )
    ordered = {block: float(scores[block]) for block in blocks}
    counts = STRATEGIES[strategy].allocate(ordered, settings, budget)
    measured = {quality.module: quality for quality in qualities}
    around = intervals or {}
    return Plan(
        base_model=base_model,
        weights=dict(weights),
        strategy={"name": strategy, **settings},
        budget={
            "total_experts": budget.total_experts,
            "min_experts": budget.min_experts,
            "max_experts": budget.max_experts,
        },
        top_k=top_k,
        rank=rank,
        blocks=tuple(
            BlockPlan(block, ordered[block], counts[block], around.get(block)) for block in blocks
        ),
        modules=tuple(
            _module(name, shape, counts[block_name(name)], measured.get(name))
            for name, shape in shapes.items()
        ),
    )


def _check_blocks(blocks: list[str], scores: Mapping[str, float]) -> None:
    if not blocks:
        raise ValueError("there are no modules to plan for")
    for block in blocks:
        if block not in scores:
            raise ValueError(f"block {block!r} has modules to adapt but no score")
    for block in scores:
        if block not in blocks:
            raise ValueError(f"block {block!r} has a score but no module to adapt")


def _module(
    name: str, shape: tuple[int, int], experts: int, quality: MatrixQuality | None
) -> ModulePlan:
    size = (int(shape[0]), int(shape[1]))
    if quality is None:
        return ModulePlan(name, size, experts)
    return ModulePlan(
        name,
        size,
        experts,
        alpha=quality.alpha,
        x_min=quality.x_min,
        distance=quality.distance,
        tail_size=quality.tail_size,
        num_eigenvalues=quality.num_eigenvalues,
        numerical_rank=quality.numerical_rank,
        note=quality.note,
    )
