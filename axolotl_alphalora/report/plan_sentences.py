"""What plans come to, in sentences, and what in a plan is legal and hardly meant.

Each function returns paragraphs; one that begins with `WARNING` deserves attention.
How they are printed, and beside which tables, is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..allocation import CONTROLS, Plan, alike
from .findings import differs_within_blocks
from .words import first_of, numeral, plural, shape_line

_EXPLAINED = "Explained variance: principal components of the inputs of layers"

_OURS = "axolotl-alphalora"


def summary(plan: Plan) -> list[str]:
    """Say what was spent and on what: one sentence or two a line."""
    lines = [*_control(plan), budget_line(plan)]
    if differs_within_blocks(plan):
        adapted = sum(number > 0 for number in plan.numbers.values())
        lines.append(
            f"{plural(plan.module_experts, 'expert')} on {adapted} of {len(plan.modules)} matrices."
        )
    lines += shape_line(plan.mixture, plan.counts.values(), [plan.rank])
    if plan.spend == "rank":
        lines.append(
            f"Spent on rank: a matrix planned for N experts has one of rank N x {plan.rank}, and "
            "no router."
        )
    if plan.sample is not None:
        tasks = plan.sample["tasks"]
        each = ", ".join(f"{task} {number}" for task, number in tasks.items())
        gradients = any(module.sensitivity for module in plan.modules)
        lines.append(
            f"{'Sensitivity: squared gradients' if gradients else _EXPLAINED} on "
            f"{plural(sum(tasks.values()), 'sample')} of "
            f"{plural(len(tasks), 'task')} ({each}), seed {plan.sample['seed']}."
        )
    return lines


def strategy_words(strategy: Mapping[str, Any]) -> str:
    """Name the strategy that a plan records, and the order where the plan is a control."""
    order = strategy.get("options", {}).get("order")
    return f"{strategy['name']}, {order}" if order in CONTROLS else strategy["name"]


def _control(plan: Plan) -> list[str]:
    if plan.control is None:
        return []
    how = {
        "opposite": "the other way round, the fewest to what had the most",
        "shuffled": f"at random with order_seed {plan.strategy['options'].get('order_seed')}",
    }[plan.control]
    name = plan.strategy["name"]
    said = f"This plan is a control: the numbers of {name}'s plan, dealt {how}."
    fixed = [units[0] for units in alike(plan.shapes, plan.members) if len(units) == 1]
    if fixed:
        said += (
            f" {first_of(fixed)} kept the number by score, since no other unit has the same shapes."
        )
    return [said]


def budget_line(plan: Plan) -> str:
    """Say what the budget was and how well it is met."""
    budget, what = plan.budget, budget_words(plan)
    if budget["kind"] is None:
        return f"Budget: {what}, {plan.strategy['name']} has numbers of its own."
    if not budget["unspent"]:
        return f"Budget: {what}, met exactly."
    verb = "is" if budget["unspent"] == 1 else "are"
    most = budget["max_experts"]
    capped = most is not None and min(plan.numbers.values()) >= most
    why = ""
    if capped:
        why = f": every matrix has max_experts {most}"
    elif plan.strategy["package"].partition(" ")[0] == _OURS:
        # A strategy of another package may leave what would have paid for more.
        why = ": no further expert fits"
    return f"Budget: {what}; {left_over(plan)} {verb} left over{why}."


def data_line(plan: Plan, rows: int, tokens: int, folder: str) -> str:
    """Say how many parameters are trained for each training token.

    Args:
        plan: The plan.
        rows: Training rows.
        tokens: Their tokens that have a label, of one epoch; at least 1.
        folder: Where they lie.
    """
    ratio = plan.trainable_parameters / tokens
    shown = f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"
    return (
        f"Data: {shown} trainable parameters for each training token, if {folder} holds what this "
        f"YAML prepared: {tokens:,} tokens with a label in {plural(rows, 'training row')} (one "
        "epoch)."
    )


def budget_words(plan: Plan) -> str:
    """Name the budget: `160 experts`; `none` without one."""
    budget = plan.budget
    kind, asked = budget["kind"], budget["asked"]
    if kind is None or asked is None:
        return "none"
    if kind == "total_experts":
        return plural(asked, "expert")
    if kind == "total_parameters":
        return plural(asked, "trainable parameter")
    return f"{asked:,.6g} MiB for adapter, gradients and optimizer state ({budget['optimizer']})"


def left_over(plan: Plan) -> str:
    """Return what is left of the budget in its own unit; a dash without a budget."""
    unspent = plan.budget["unspent"]
    if unspent is None:
        return "-"
    if plan.budget["kind"] == "memory_mib":
        return f"{unspent:.3g} MiB"
    return numeral(unspent)


_DEFAULT_TOP_K = 2


def cautions(plan: Plan) -> list[str]:
    """Say what a reader of the YAML would not expect of the plan that came of it.

    Args:
        plan: The plan.

    Returns:
        A paragraph each on a `top_k` that leaves nothing to route or weighs layers differently,
        on experts that hold more rank than their layers have, and on an adapter that is larger than
        what it adapts.
    """
    found = (_idle_top_k(plan), _uneven_gates(plan), _excess_rank(plan), _excess_size(plan))
    return [line for line in found if line is not None]


def _idle_top_k(plan: Plan) -> str | None:
    most, top_k = max(plan.counts.values()), plan.top_k
    if isinstance(top_k, float):
        idle = plan.mixture.active(most) == plan.mixture.experts(most)
    else:
        idle = top_k > most
    if not idle or (plan.spend == "rank" and top_k == _DEFAULT_TOP_K):
        return None
    if most == 1:
        routers = "there are no routers and top_k does nothing"
        if plan.segments > 1:
            routers = "every token uses all of its segments and top_k does nothing"
        return (
            f"top_k is {top_k}, and no layer has more than one expert, so that {routers}. To "
            "route, plan more experts."
        )
    if isinstance(top_k, float):
        return (
            f"top_k is {top_k}, which of {most} experts, the most that a layer has, is all of "
            "them, so that every token uses all experts of every layer. To route, lower top_k, or "
            "plan more experts."
        )
    return (
        f"top_k is {top_k}, and no layer has more than {most} experts, so that every token uses "
        f"all experts of every layer. To route, set top_k to {most - 1} or less, or plan more "
        "experts."
    )


def _uneven_gates(plan: Plan) -> str | None:
    """On a share of one expert in some layers and of more in others."""
    if not isinstance(plan.top_k, float):
        return None
    active = [plan.mixture.active(number) for number in plan.counts.values() if number > 1]
    single = active.count(1)
    if single in (0, len(active)):
        return None
    return (
        f"top_k is {plan.top_k}, which is one expert in {single} of {len(active)} routed layers "
        "and more in the others. A single expert counts with its probability, several with gates "
        "that sum to 1, so that updates of the former start out smaller. To have the same "
        "everywhere, raise top_k, or give a whole number."
    )


def _excess_rank(plan: Plan) -> str | None:
    adapted = [module for module in plan.modules if module.experts]
    # Updates with a shared A have its rank, however many experts there are.
    held = {m.name: m.rank * (1 if plan.share_a else m.experts) for m in adapted}
    over = [module for module in adapted if held[module.name] > min(module.shape)]
    if not over:
        return None
    worst = max(over, key=lambda module: held[module.name] / min(module.shape))
    gets = f"{worst.experts} experts of rank {worst.rank:,}"
    if worst.experts == 1:
        gets = f"one expert of rank {worst.rank:,}"
    elif plan.share_a:
        gets += ", which share one A"
    return (
        f"In {len(over)} of {len(adapted)} layers the experts hold more rank than the layer has. "
        f"{worst.name} ({worst.shape[0]}x{worst.shape[1]}) gets {gets}, "
        f"{held[worst.name]:,} in all, and no update of it has more than "
        f"{min(worst.shape):,}. Lower the rank of an expert (lora_r)"
        + ("." if plan.share_a else " or their number.")
    )


def _excess_size(plan: Plan) -> str | None:
    base = sum(module.shape[0] * module.shape[1] for module in plan.modules)
    if plan.trainable_parameters <= base:
        return None
    return (
        f"The adapter is larger than what it adapts: {plan.trainable_parameters:,} trainable "
        f"parameters on base layers of {base:,}. Lower the rank of an expert (lora_r) or their "
        "number."
    )
