"""A trained adapter and its export as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .tables import PAGE, TERMINAL, Bar, Column, Table, names
from .words import decimal, numeral, spread

if TYPE_CHECKING:
    from ..adapter.usage import RouterUsage
    from ..export import Exported
    from ..inspection import Inspection, ModuleExperts, RoutingSummary

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
        "how much the experts of a token give away its task: 0 nothing, 1 at most",
    ),
)
_OF_WEIGHTS = 3
"""Terms at the beginning that concern the weights alone."""


def blocks_table(inspection: Inspection, title: str) -> Table:
    """Return the experts of each block, how large their updates are, and how much alike."""
    blocks = inspection.blocks
    redundancies = [block.redundancy or 0 for block in blocks]
    most = max(redundancies, default=0) or 1
    columns = [
        names("block", [block.name for block in blocks]),
        Column(
            "experts",
            [numeral(block.experts) for block in blocks],
            [numeral(inspection.total_experts)],
        ),
        Column("rank", [spread(block.ranks) for block in blocks]),
        Column("norm", [decimal(block.mean_norm) for block in blocks]),
        Column(
            "effective rank",
            [decimal(block.mean_effective_rank, 2) for block in blocks],
            short="eff. rank",
        ),
        Column("redundancy", [decimal(block.redundancy) for block in blocks]),
        Column("largest |cosine|", [decimal(block.max_cosine) for block in blocks], on=[PAGE]),
        Column("", [Bar(one / most) for one in redundancies], left=True, on=[TERMINAL]),
    ]
    return Table(columns, title=title, footer=["total"])


def routers_table(inspection: Inspection) -> Table:
    """Return what the routers of each block decide."""
    found = [block.routing for block in inspection.blocks]
    routers = [str(one.routers) if one else "-" for one in found]
    columns = [
        names("block", [block.name for block in inspection.blocks]),
        Column("routers", routers, on=[PAGE]),
        *_routing(found),
        Column(
            "specialisation",
            [decimal(one.specialisation if one else None) for one in found],
            short="by task",
            on=[TERMINAL, PAGE] if len(inspection.tasks) > 1 else [PAGE],
        ),
    ]
    return Table(columns, title="Routers of each block")


def tasks_table(inspection: Inspection) -> Table:
    """Return what the routers decide on each task."""
    tasks = inspection.tasks
    counts = inspection.data.rows if inspection.data is not None else {}
    rows = [f"{counts[task.name]:,}" if task.name in counts else "-" for task in tasks]
    columns = [
        names("task", [task.name for task in tasks], ending=False),
        Column("rows", rows, on=[PAGE]),
        Column("tokens", [f"{task.tokens:,}" for task in tasks]),
        Column("differs", [f"{task.distance:.1%}" for task in tasks]),
        *_routing([task.routing for task in tasks]),
    ]
    return Table(columns, title="Routers of each task")


def terms_table(inspection: Inspection) -> Table:
    """Return what the words of the other tables mean."""
    terms = _TERMS[: None if inspection.usage is not None else _OF_WEIGHTS]
    meanings = [meaning for _, meaning in terms]
    return Table(
        [names("word", [word for word, _ in terms]), Column("meaning", meanings, left=True)]
    )


def modules_table(inspection: Inspection) -> Table:
    """Return number (n) and rank (r) of each module's experts, their size and redundancy."""
    rows = inspection.modules
    watched = inspection.routing is not None
    found = [inspection.routing_of([row]) for row in rows] if watched else []
    pairs = [row.closest for row in rows]
    columns = [
        names("module", [row.name for row in rows]),
        Column("shape", [f"{row.out_features}x{row.in_features}" for row in rows], on=[PAGE]),
        Column("experts", [str(len(row.experts)) for row in rows], short="n"),
        Column("rank", [str(row.rank) for row in rows], short="r"),
        Column("norm", [decimal(row.mean_norm) for row in rows]),
        Column(
            "effective rank",
            [decimal(row.mean_effective_rank, 2) for row in rows],
            short="eff. rank",
        ),
        Column("redundancy", [decimal(row.redundancy) for row in rows], short="redund."),
        Column("largest |cosine|", [decimal(row.max_cosine) for row in rows], short="max"),
        Column(
            "of experts",
            ["{} and {}".format(*pair) if pair else "-" for pair in pairs],
            on=[PAGE],
        ),
        Column(
            "of",
            ["{}, {}".format(*pair) if pair else "-" for pair in pairs],
            on=[] if watched else [TERMINAL],
        ),
    ]
    if watched:
        columns += _routing(found, [PAGE], terminal=("entropy", "dead"))
        columns.append(
            Column(
                "specialisation",
                [decimal(one.specialisation if one else None) for one in found],
                on=[PAGE],
            )
        )
    legend = "n: experts, r: rank of each; max: the largest |cosine|"
    legend += "" if watched else ", of which two"
    return Table(columns, title=f"Modules ({legend})", by_block=True)


def experts_table(inspection: Inspection) -> Table:
    """Return each expert: its size, the one that is most like it, and its share of the tokens."""
    tasks = [task.name for task in inspection.tasks]
    heads = ["module", "expert", "norm", "/ mean", "effective rank", "closest", "|cosine|"]
    if inspection.usage is not None:
        heads += ["share x experts", *(f"{task}: share x experts" for task in tasks)]
    rows = [cells for row in inspection.modules for cells in _experts(inspection, row, tasks)]
    first, *others = zip(*rows, strict=True)
    return Table(
        [
            names(heads[0], first),
            *(Column(head, cells) for head, cells in zip(heads[1:], others, strict=True)),
        ]
    )


def losses_table(found: Exported) -> Table:
    """Return what an export costs: the losses of base model, adapter and export."""
    price, numbers = found.divergence, found.divergence.to_dict()
    measured_on = found.notes.get("measured_on", "held out")
    kinds = {
        "base model": ("base", "-"),
        "adapter, routed": ("routed", "0"),
        f"export, {found.method}": ("export", decimal(price.kl, 4)),
    }
    losses = [decimal(numbers[f"loss_{kind}"], 4) for kind, _ in kinds.values()]
    perplexities = [decimal(numbers[f"perplexity_{kind}"]) for kind, _ in kinds.values()]
    return Table(
        [
            Column("", list(kinds), left=True),
            Column("loss per token", losses),
            Column("perplexity", perplexities),
            Column("KL per token", [divergence for _, divergence in kinds.values()]),
        ],
        title="What the export costs",
        caption=f"{price.rows} rows, {price.tokens:,} tokens: {measured_on}",
    )


def _routing(
    found: Sequence[RoutingSummary | None],
    on: Sequence[str] = (TERMINAL, PAGE),
    terminal: Sequence[str] = (),
) -> list[Column]:
    """Columns of what routers decide; those named in `terminal` are shown there too."""
    columns = {
        "entropy": [decimal(one.entropy if one else None) for one in found],
        "top gate": [decimal(one.top_gate if one else None) for one in found],
        "load cv": [decimal(one.load_cv if one else None) for one in found],
        "load max": [decimal(one.load_max if one else None) for one in found],
        "dead": ["-" if one is None or one.dead is None else str(one.dead) for one in found],
    }
    return [
        Column(head, cells, on=[*on, *([TERMINAL] if head in terminal else [])])
        for head, cells in columns.items()
    ]


def _experts(
    inspection: Inspection, row: ModuleExperts, tasks: Sequence[str]
) -> list[tuple[str, ...]]:
    by_task = inspection.task_usages(row.name)
    usages = [inspection.usage_of(row.name), *(by_task.get(task) for task in tasks)]
    lines = []
    for number, expert in enumerate(row.experts):
        others = {
            pair[pair[0] == number]: cosine for pair, cosine in row.pairs.items() if number in pair
        }
        closest = max(others, key=lambda other: others[other]) if others else None
        cells: tuple[str, ...] = (
            row.name,
            str(number),
            decimal(expert.norm),
            decimal(row.relative_norms[number]),
            decimal(expert.effective_rank, 2),
            "-" if closest is None else str(closest),
            "-" if closest is None else decimal(others[closest]),
        )
        if inspection.usage is not None:
            cells += tuple(_share(usage, number) for usage in usages)
        lines.append(cells)
    return lines


def _share(usage: RouterUsage | None, number: int) -> str:
    """An expert's share of the tokens in units of a fair one."""
    from ..inspection import expert_shares

    if usage is None:
        return "-"
    shares = expert_shares(usage)
    return decimal(shares[number] * len(shares))
