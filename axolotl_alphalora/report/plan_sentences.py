"""What plans and measurements come to, in sentences, and what in a plan is legal and hardly meant.

Each function returns paragraphs; one that begins with :data:`~.tables.WARNING` deserves attention.
How they are printed, and beside which tables, is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from ..allocation import CONTROLS, Plan, alike
from ..blocks import kind_of
from .findings import POOR_DISTANCE, SHORT_TAIL, Findings, differs_within_blocks, is_poor
from .shapes import shape_line
from .tables import WARNING, first_of, listed, numeral, plural

if TYPE_CHECKING:
    from ..settings import MatrixQuality


NOISE = 0.5
"""Below this reliability most of the differences between blocks are errors of the fits."""

_EXPLAINED = "Explained variance: principal components of the inputs of layers"

_OURS = "axolotl-alphalora"
_UNITS = {"block": "blocks", "group": "parts of blocks", "module": "modules"}


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
        "opposite": "the other way round, the fewest to the highest score",
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
        f"Data: {shown} trainable parameters for each training token. There are {tokens:,} "
        f"tokens with a label in {plural(rows, 'training row')} (one epoch, prepared in {folder})."
    )


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


def explain_plan(plan: Plan, findings: Findings | None) -> list[str]:
    """Say what a plan's findings come to, with the experts that they brought; nothing without."""
    if findings is None:
        return []
    return explain(findings, {unit.name: unit.experts for unit in plan.units})


def explain(findings: Findings, experts: Mapping[str, float] | None = None) -> list[str]:
    """Say in sentences what the findings come to.

    Args:
        findings: What was measured.
        experts: Unit name to its number of experts, to be named with the units that stand out.

    Returns:
        One paragraph a line; one that begins with :data:`WARNING` deserves attention.
    """
    return [
        *_extremes(findings, experts or {}),
        *_fits(findings.matrices),
        *_notes(findings.matrices),
        *_unmeasured(findings.description),
        *_quantised(findings),
        *_ranking(findings),
    ]


def _extremes(findings: Findings, experts: Mapping[str, float]) -> list[str]:
    scores = findings.scores
    if len(scores) < 2:
        return []
    least, best = max(scores, key=lambda u: scores[u]), min(scores, key=lambda u: scores[u])
    if scores[least] == scores[best]:
        return [
            f"All {len(scores)} {_UNITS[findings.granularity]} have the same alpha, "
            f"{scores[best]:.3f}."
        ]

    def words(unit: str) -> str:
        number = f", {plural(experts[unit], 'expert')}" if unit in experts else ""
        return f"{unit} (alpha {scores[unit]:.3f}{number})"

    return [f"Least trained: {words(least)}. Best trained: {words(best)}."]


def _fits(matrices: Sequence[MatrixQuality]) -> list[str]:
    fitted = [row for row in matrices if row.alpha is not None]
    distances = [row.distance for row in fitted if row.distance is not None]
    tails = [row.tail_size for row in fitted if row.tail_size is not None]
    if not distances or not tails:
        return []
    usual = median(row.num_eigenvalues for row in fitted)
    lines = [
        f"Fits: {plural(len(fitted), 'matrix', 'matrices')}, median distance "
        f"{median(distances):.3f}, median tail {median(tails):g} of {usual:g} eigenvalues."
    ]
    poor = sorted(
        (row for row in fitted if is_poor(row)), key=lambda row: row.distance or 0, reverse=True
    )
    if poor:
        worst = _matrices(poor, lambda row: f"distance {row.distance:.2f}, tail {row.tail_size}")
        lines.append(
            f"Poor fits (distance above {POOR_DISTANCE:g} or tail below {SHORT_TAIL}): {worst}."
        )
    return lines


def _notes(matrices: Sequence[MatrixQuality]) -> list[str]:
    noted = [row for row in matrices if row.note is not None]
    known = {kind_of(row.module) for row in matrices if row.alpha is not None}
    unfitted = [row for row in noted if row.alpha is None]
    groups = (
        (
            "Without a power law, counted with the mean alpha of their kind in the other blocks",
            [row for row in unfitted if kind_of(row.module) in known],
        ),
        (
            "Left out of every block, since no matrix of their kind has a power law",
            [row for row in unfitted if kind_of(row.module) not in known],
        ),
        (
            "Fitted to their eigenvalues above round-off only, or to few",
            [row for row in noted if row.alpha is not None],
        ),
    )
    return [
        f"{what}: {_matrices(rows, lambda row: row.note or '')}." for what, rows in groups if rows
    ]


def _unmeasured(description: Mapping[str, Sequence[str]]) -> list[str]:
    stacked = description.get("unmeasured", [])
    further = description.get("further_blocks", [])
    left_out = description.get("left_out", [])
    said = []
    if stacked:
        said.append(
            f"Not measured: {plural(len(stacked), 'stacked weight')}, which hold several matrices "
            f"each and take no experts ({first_of(stacked)})."
        )
    if further:
        said.append(
            f"Not measured: {plural(len(further), 'matrix', 'matrices')} of blocks that "
            "transformers leaves in the files, such as layers that predict further tokens "
            f"({first_of(further)})."
        )
    if left_out:
        said.append(
            f"{WARNING}{plural(len(left_out), 'matrix', 'matrices')} in the files belong to no "
            f"layer of the model as transformers makes it by its config.json, and are left out "
            f"here and in training: {first_of(left_out)}. Do the files hold more than this model?"
        )
    return said


def _quantised(findings: Findings) -> list[str]:
    quantization = findings.description.get("quantization")
    if not quantization or findings.settings.estimator == "hill":
        return []
    return [
        f"{WARNING}these are dequantised weights ({quantization}). Quantisation moves the start "
        f"of the tail, and with it {findings.settings.estimator}'s alpha, by as much as blocks "
        "differ; hill's hardly. Use the estimator hill, or the full-precision checkpoint."
    ]


def _ranking(findings: Findings) -> list[str]:
    share, judged = findings.most_trust, findings.trust is not None
    if share is None:
        return []
    if share >= NOISE and not judged:
        return [
            "Ranking: not judged yet. The errors of these fits come mostly from where each tail "
            "starts; --confidence resamples the spectra and says how much of the ranking is noise."
        ]
    most = "" if judged else "at most "
    units = _UNITS[findings.granularity]
    said = (
        f"{most}{share:.0%} of the variance between the {units}' alphas is more than the errors of "
        f"the fits explain. {_judged(findings)}"
    )
    if share >= NOISE:
        return [f"Ranking: {said}"]
    return [
        f"{WARNING}the ranking of the {units} rests on noise: {said} An even allocation would be "
        "as well founded."
    ]


def _judged(findings: Findings) -> str:
    searched = findings.settings.estimator != "hill"
    if not findings.intervals:
        if not searched:
            return "Judged by asymptotic standard errors; --confidence resamples the spectra."
        return (
            "Judged by asymptotic standard errors, as if it were known where each tail starts; "
            "--confidence resamples the spectra, which counts that choice too."
        )
    if not searched and findings.settings.window is None:
        return (
            "Judged by resampling, which overstates hill's errors on whole matrices; windows do "
            "not suffer from that."
        )
    return "Judged by resampling the spectra."


def _matrices(rows: Sequence[MatrixQuality], words: Callable[[MatrixQuality], str]) -> str:
    return listed([f"{row.module} ({words(row)})" for row in rows])


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
