"""What is legal in a plan and hardly meant."""

from __future__ import annotations

from .plan import ModulePlan, Plan

_DEFAULT_TOP_K = 2


def cautions(plan: Plan) -> list[str]:
    """Say what a reader of the YAML would not expect of the plan that came of it.

    Args:
        plan: The plan.

    Returns:
        A paragraph each on a ``top_k`` that leaves nothing to route, on experts that hold more rank
        than their layers have, and on an adapter that is larger than what it adapts.
    """
    found = (_idle_top_k(plan), _excess_rank(plan), _excess_size(plan))
    return [line for line in found if line is not None]


def _idle_top_k(plan: Plan) -> str | None:
    most, top_k = max(plan.counts.values()), plan.top_k
    if top_k <= most or (plan.spend == "rank" and top_k == _DEFAULT_TOP_K):
        return None
    if most == 1:
        return (
            f"top_k is {top_k}, and no layer has more than one expert, so that there are no "
            "routers and top_k does nothing. To route, plan more experts."
        )
    return (
        f"top_k is {top_k}, and no layer has more than {most} experts, so that every token uses "
        f"all experts of every layer. To route, set top_k to {most - 1} or less, or plan more "
        "experts."
    )


def _excess_rank(plan: Plan) -> str | None:
    adapted = [module for module in plan.modules if module.experts]
    over = [module for module in adapted if _rank_share(module) > 1]
    if not over:
        return None
    worst = max(over, key=_rank_share)
    held = f"{worst.experts} experts of rank {worst.rank:,}"
    if worst.experts == 1:
        held = f"one expert of rank {worst.rank:,}"
    return (
        f"In {len(over)} of {len(adapted)} layers the experts hold more rank than the layer has. "
        f"{worst.name} ({worst.shape[0]}x{worst.shape[1]}) gets {held}, "
        f"{worst.experts * worst.rank:,} in all, and no update of it has more than "
        f"{min(worst.shape):,}. Lower the rank of an expert (lora_r) or their number."
    )


def _rank_share(module: ModulePlan) -> float:
    return module.experts * module.rank / min(module.shape)


def _excess_size(plan: Plan) -> str | None:
    base = sum(module.shape[0] * module.shape[1] for module in plan.modules)
    if plan.trainable_parameters <= base:
        return None
    return (
        f"The adapter is larger than what it adapts: {plan.trainable_parameters:,} trainable "
        f"parameters on base layers of {base:,}. Lower the rank of an expert (lora_r) or their "
        "number."
    )
