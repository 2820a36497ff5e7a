"""The page of an inspected adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .depth import in_words
from .elements import decimal, details, html_table, whole_page

if TYPE_CHECKING:
    from ..inspection import BlockSummary, Inspection, ModuleExperts, RoutingSummary

__all__ = ["inspection_page"]

_ROUTING = ("entropy", "top gate", "load cv", "load max", "dead", "specialisation")

_TERMS = (
    ("norm", "Frobenius norm of an expert's update, scaling x B A"),
    ("effective rank", "over how many directions that update is spread, at most its rank"),
    (
        "redundancy",
        "mean absolute cosine between the updates of a module's experts: 0 unrelated, 1 copies",
    ),
    (
        "entropy, top gate",
        "how undecided a router is (1: all experts alike), and a token's largest gate",
    ),
    ("load cv, load max", "how uneven the shares of the tokens are; the largest / the mean share"),
    (
        "share x experts",
        "an expert's share of the tokens, or of the gates where every token goes to all experts: "
        "1 is fair",
    ),
    ("dead", "experts with less than a tenth of the fair share"),
    (
        "specialisation",
        "how much the experts of a token give away its task: 0 nothing, 1 everything",
    ),
)


def inspection_page(inspection: Inspection, title: str, svg: str, notes: Sequence[str]) -> str:
    """Return a page with figure, sentences, tables of all that was found, and its numbers.

    Args:
        inspection: What was found.
        title: Heading.
        svg: The figure as an SVG file.
        notes: Sentences.
    """
    modules, experts = inspection.modules, inspection.module_experts
    watched = inspection.usage is not None
    parts = ["<h2>Blocks</h2>", _blocks(inspection)]
    if inspection.routing is not None:
        parts += ["<h2>Routers</h2>", _routers(inspection)]
    if inspection.tasks:
        parts += ["<h2>Tasks</h2>", _tasks(inspection)]
    terms = [list(term) for term in _TERMS[: None if watched else 3]]
    parts += [
        details("What the words mean", html_table(["word", "meaning"], terms)),
        details(f"{len(modules)} modules", _modules(inspection)),
        details(f"{experts:,} experts", _experts(inspection)),
    ]
    return whole_page(title, svg, notes, parts, inspection.to_dict())


def _blocks(inspection: Inspection) -> str:
    head = ["block", "experts", "rank", "norm", "effective rank", "redundancy", "largest |cosine|"]
    experts = in_words(block.experts for block in inspection.blocks)

    def row(block: BlockSummary, number: str) -> list[str]:
        return [
            block.name,
            number,
            ranks_in_words(block.ranks),
            decimal(block.mean_norm),
            f"{block.mean_effective_rank:.2f}",
            decimal(block.redundancy),
            decimal(block.max_cosine),
        ]

    return html_table(head, map(row, inspection.blocks, experts))


def _routers(inspection: Inspection) -> str:
    rows = [
        [block.name, str(block.routing.routers) if block.routing else "-", *_routing(block.routing)]
        for block in inspection.blocks
    ]
    return html_table(["block", "routers", *_ROUTING], rows)


def _tasks(inspection: Inspection) -> str:
    head = ["task", "rows", "tokens", "differs", *_ROUTING[:-1]]
    counted = inspection.data.rows if inspection.data is not None else {}
    rows = [
        [
            task.name,
            f"{counted[task.name]:,}" if task.name in counted else "-",
            f"{task.tokens:,}",
            f"{task.distance:.1%}",
            *_routing(task.routing)[:-1],
        ]
        for task in inspection.tasks
    ]
    return html_table(head, rows)


def _modules(inspection: Inspection) -> str:
    head = ["module", "shape", "experts", "rank", "norm", "effective rank", "redundancy"]
    head += ["largest |cosine|", "of experts"]
    watched = inspection.routing is not None
    rows = []
    for row in inspection.modules:
        pair = "-" if row.closest is None else "{} and {}".format(*row.closest)
        cells = [
            row.name,
            f"{row.out_features}x{row.in_features}",
            str(len(row.experts)),
            str(row.rank),
            decimal(row.mean_norm),
            f"{row.mean_effective_rank:.2f}",
            decimal(row.redundancy),
            decimal(row.max_cosine),
            pair,
        ]
        rows.append(cells + (_routing(inspection.routing_of([row])) if watched else []))
    return html_table([*head, *(_ROUTING if watched else ())], rows)


def _experts(inspection: Inspection) -> str:
    head = ["module", "expert", "norm", "/ mean", "effective rank", "closest", "|cosine|"]
    tasks = [task.name for task in inspection.tasks]
    if inspection.usage is not None:
        head += ["share x experts", *(f"{task}: share x experts" for task in tasks)]
    rows = [
        [row.name, str(number), *cells]
        for row in inspection.modules
        for number, cells in enumerate(_expert_cells(inspection, row, tasks))
    ]
    return html_table(head, rows)


def _expert_cells(
    inspection: Inspection, row: ModuleExperts, tasks: Sequence[str]
) -> list[list[str]]:
    from ..inspection import expert_shares

    found = []
    by_task = inspection.task_usages(row.name)
    usages = [inspection.usage_of(row.name), *(by_task.get(task) for task in tasks)]
    for number, expert in enumerate(row.experts):
        others = {
            pair[pair[0] == number]: cosine for pair, cosine in row.pairs.items() if number in pair
        }
        closest = max(others, key=lambda other: others[other]) if others else None
        cells = [
            decimal(expert.norm),
            decimal(row.relative_norms[number]),
            f"{expert.effective_rank:.2f}",
            "-" if closest is None else str(closest),
            "-" if closest is None else decimal(others[closest]),
        ]
        if inspection.usage is not None:
            cells += [
                "-" if usage is None else decimal(expert_shares(usage)[number] * len(row.experts))
                for usage in usages
            ]
        found.append(cells)
    return found


def ranks_in_words(ranks: Sequence[int]) -> str:
    """Return the rank, or the least and the largest."""
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"


def _routing(routing: RoutingSummary | None) -> list[str]:
    if routing is None:
        return ["-"] * len(_ROUTING)
    return [
        decimal(routing.entropy),
        decimal(routing.top_gate),
        decimal(routing.load_cv),
        decimal(routing.load_max),
        "-" if routing.dead is None else str(routing.dead),
        decimal(routing.specialisation),
    ]
