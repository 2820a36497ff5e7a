"""What a trained adapter and its export come to, in sentences.

Each function returns paragraphs; one that begins with `WARNING` deserves attention.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from ..files import PROBE
from .plan_sentences import strategy_words
from .words import WARNING, listed, model_name, numeral, plural, spread

if TYPE_CHECKING:
    from ..export import Exported
    from ..inspection import Inspection
    from ..mixture import Mixture

COPIES = 0.95
"""Two experts whose updates have a larger absolute cosine are called near copies."""

HARDLY_TRAINED = 0.1
"""An expert with less than this part of its module's mean norm is called hardly trained."""


def facts(inspection: Inspection) -> list[str]:
    """Say in sentences what the adapter is, and what data its routers were watched on."""
    config, strategy = inspection.config, inspection.strategy
    ranks = spread((row.rank for row in inspection.modules), " to ")
    lines = [
        f"{plural(len(inspection.blocks), 'block')} with "
        f"{plural(len(inspection.modules), 'module')}, in which there are "
        f"{plural(inspection.module_experts, 'expert')} of rank {ranks}{_cut(inspection)}: "
        f"{_active(config.mixture)}{_shape(config.mixture)}, {inspection.parameters:,} parameters"
        + (f", for {model_name(config.base_model)}" if config.base_model else "")
        + (f"; shared out by {strategy_words(strategy)}." if strategy else ".")
    ]
    data = inspection.data
    if data is not None:
        lines.append(
            f"Routers watched on {data.source}: {plural(sum(data.rows.values()), 'row')}, "
            f"{data.tokens:,} tokens."
        )
    return lines


def _cut(inspection: Inspection) -> str:
    segments = inspection.config.mixture.segments
    if segments == 1:
        return ""
    return f" ({inspection.module_experts // segments:,} as planned, cut into {segments} each)"


def _active(mixture: Mixture) -> str:
    if isinstance(mixture.top_k, float):
        return f"{100 * mixture.top_k:g}% of them for a token"
    return f"top-{mixture.top_k * mixture.segments}"


def _shape(mixture: Mixture) -> str:
    said = ", one A for all experts of a module" if mixture.share_a else ""
    return said + (f", routers of rank {mixture.router_rank}" if mixture.router_rank else "")


def stands_out(inspection: Inspection) -> list[str]:
    """Say in sentences what an inspection comes to.

    Args:
        inspection: What was found.

    Returns:
        Paragraphs.
    """
    if not any(expert.norm for row in inspection.modules for expert in row.experts):
        return [
            f"{WARNING}no expert has been trained: every B is zero, so the adapter changes nothing."
        ]
    return [
        *_redundancy(inspection),
        *_copies(inspection),
        *_ranks(inspection),
        *_untrained(inspection),
        *_routers(inspection),
        *_tasks(inspection),
    ]


def _redundancy(inspection: Inspection) -> list[str]:
    known = {row.name: row for row in inspection.modules if row.redundancy is not None}
    if not known:
        return []
    said = (
        "Redundancy: the updates of a module's experts have a mean |cosine| of "
        f"{inspection.redundancy:.3f} (0: unrelated, 1: copies)."
    )
    if len(known) == 1:
        return [said]
    blocks = [block for block in inspection.blocks if block.redundancy is not None]
    if len(blocks) > 1:
        high = max(blocks, key=lambda block: block.redundancy or 0)
        low = min(blocks, key=lambda block: block.redundancy or 0)
        chooses = any(inspection.chooses(row) for row in inspection.by_block[high.name])
        alike = "" if chooses else ", which see the same tokens"
        said += (
            f" It is largest in {high.name} ({high.redundancy:.3f}, "
            f"{plural(high.experts, 'expert')}{alike}) and smallest in {low.name} "
            f"({low.redundancy:.3f}, {plural(low.experts, 'expert')})."
        )
    most = max(known.values(), key=lambda row: row.redundancy or 0)
    pair = max(known.values(), key=lambda row: row.max_cosine or 0)
    assert pair.closest is not None
    return [
        said,
        f"Most redundant module: {most.name} ({most.redundancy:.3f} between its "
        f"{plural(len(most.experts), 'expert')}). Closest two experts: {pair.closest[0]} and "
        f"{pair.closest[1]} of {pair.name} ({pair.max_cosine:.3f}).",
    ]


def _copies(inspection: Inspection) -> list[str]:
    found = [
        f"{row.name} ({one} and {other})"
        for row in inspection.modules
        for (one, other), cosine in row.pairs.items()
        if cosine > COPIES
    ]
    if not found:
        return []
    return [
        f"{WARNING}{plural(len(found), 'pair')} of experts are near copies (|cosine| above "
        f"{COPIES:g}): {listed(found)}. Fewer experts would do there."
    ]


def _ranks(inspection: Inspection) -> list[str]:
    experts = [
        (expert.effective_rank, row.rank) for row in inspection.modules for expert in row.experts
    ]
    used = fmean(effective for effective, _ in experts)
    rank = fmean(rank for _, rank in experts)
    low = min(inspection.modules, key=lambda row: row.mean_effective_rank / row.rank)
    return [
        f"Effective rank: {used:.1f} of {numeral(round(rank, 1))} on average; least of its rank is "
        f"used in {low.name} ({low.mean_effective_rank:.1f} of {low.rank})."
    ]


def _untrained(inspection: Inspection) -> list[str]:
    lines = []
    zero, hardly = [], []
    for row in inspection.modules:
        for number, share in enumerate(row.relative_norms):
            name = f"{row.name} ({number})"
            if not share:
                zero.append(name)
            elif share < HARDLY_TRAINED:
                hardly.append(name)
    all_of_them = plural(inspection.module_experts, "expert")
    if zero:
        lines.append(
            f"{WARNING}{len(zero):,} of {all_of_them} add nothing, as B is zero: {listed(zero)}."
        )
    if hardly:
        lines.append(
            f"Hardly trained: {len(hardly):,} of {all_of_them} have less than "
            f"{HARDLY_TRAINED:.0%} of their module's mean norm: {listed(hardly)}."
        )
    return lines


def _routers(inspection: Inspection) -> list[str]:
    routing = inspection.routing
    if routing is None:
        return []
    said = (
        f"Routers: entropy {routing.entropy:.3f} on average (1: all experts alike), largest gate "
        f"of a token {routing.top_gate:.3f}."
    )
    if routing.load_max is None:
        return [f"{said} Every token goes to all experts of a module."]
    said += f" The busiest expert of a router gets {routing.load_max:.2f} times its fair share."
    dead, choosing = [], 0
    for row in inspection.modules:
        usage = inspection.usage_of(row.name)
        if usage is not None and usage.chooses:
            choosing += len(row.experts)
            dead += [f"{row.name} ({number})" for number in usage.dead]
    if not dead:
        return [f"{said} No expert is dead (below a tenth of its fair share)."]
    return [
        said,
        f"Dead experts, with less than a tenth of their fair share: {len(dead):,} of {choosing:,}: "
        f"{listed(dead)}.",
    ]


def _tasks(inspection: Inspection) -> list[str]:
    routing = inspection.routing
    if routing is None or routing.specialisation is None:
        return []
    blocks = [
        (block.routing.specialisation, block.name)
        for block in inspection.blocks
        if block.routing is not None and block.routing.specialisation is not None
    ]
    most, name = max(blocks)
    task = max(inspection.tasks, key=lambda task: task.distance)
    return [
        f"Tasks: a token's experts give away {routing.specialisation:.1%} of what they can tell of "
        f"its task, most in {name} ({most:.1%}). The task that differs most is {task.name}: "
        f"{task.distance:.1%} of its tokens go to other experts than on average over the tasks."
    ]


def exported(found: Exported) -> list[str]:
    """Say what was done to make an export, and what it keeps."""
    exact = len(found.ranks) - found.approximated
    said = [
        f"{found.approximated} of {len(found.ranks)} layers are approximated, {exact} exact "
        f"(one expert). Rank: {spread(found.ranks.values(), ' to ')}."
    ]
    if found.unseen:
        said.append(
            f"{WARNING}no row reached {len(found.unseen)} of them, such as {found.unseen[0]}: "
            "their experts count alike, and the price does not show it. Give --data that uses "
            "them."
        )
    if found.tied:
        said.append(
            f"{WARNING}{', '.join(found.tied)} shares its weight with the embeddings. Load the "
            "LoRA beside the base model: merging would change the embeddings too."
        )
    gain = found.divergence.loss_base - found.divergence.loss_routed
    if gain > 0:
        kept = (found.divergence.loss_base - found.divergence.loss_export) / gain
        said.append(f"The export keeps {100 * kept:.1f} % of what the adapter gains in loss.")
    return said


def asking(output: Path) -> str:
    """Say how to find out whether a server serves an export."""
    return f"Ask the server whether it serves it: alphalora probe URL --probe {output / PROBE}"
