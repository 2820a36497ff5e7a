"""What a plan comes to, in sentences."""

from __future__ import annotations

from ..allocation import Plan
from ..blocks import group_by_block
from .words import numeral, plural

__all__ = ["budget_line", "budget_words", "differs_within_blocks", "left_over", "summary"]

_OURS = "axolotl-alphalora"


def summary(plan: Plan) -> list[str]:
    """Say what was spent and on what: one sentence or two a line."""
    lines = [budget_line(plan)]
    if differs_within_blocks(plan):
        adapted = sum(number > 0 for number in plan.numbers.values())
        lines.append(
            f"{plural(plan.module_experts, 'expert')} on {adapted} of {len(plan.modules)} matrices."
        )
    if plan.spend == "rank":
        lines.append(
            f"Spent on rank: a matrix planned for N experts has one of rank N x {plan.rank}, and "
            "no router."
        )
    if plan.sample is not None:
        tasks = plan.sample["tasks"]
        listed = ", ".join(f"{task} {number}" for task, number in tasks.items())
        lines.append(
            f"Sensitivity: squared gradients on {plural(sum(tasks.values()), 'sample')} of "
            f"{plural(len(tasks), 'task')} ({listed}), seed {plan.sample['seed']}."
        )
    return lines


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


def budget_words(plan: Plan) -> str:
    """Name the budget: ``160 experts``; ``none`` without one."""
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


def differs_within_blocks(plan: Plan) -> bool:
    """Whether the modules of a block have different numbers of experts."""
    numbers = plan.numbers
    return any(
        len({numbers[name] for name in names}) > 1 for names in group_by_block(numbers).values()
    )
