"""An inspected adapter as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .layout import (
    GAP,
    bar,
    decimal,
    plain_table,
    print_lines,
    print_paragraph,
    print_table,
    shorten,
    split_width,
)
from .modules import print_by_block
from .stands_out import stands_out
from .words import numeral, plural

if TYPE_CHECKING:
    from ..inspection import Inspection, RoutingSummary

__all__ = ["facts", "print_inspected_modules", "print_inspection"]

_ROUTING = ("entropy", "top gate", "load cv", "load max", "dead")


def print_inspection(inspection: Inspection, title: str, console: Console) -> None:
    """Print tables of blocks, routers and tasks, and what stands out."""
    print_table(console, title, _blocks(inspection, console.width))
    for line in facts(inspection):
        print_paragraph(console, line)
    if inspection.routing is not None:
        console.print()
        print_table(console, "Routers of each block", _routers(inspection, console.width))
    if inspection.tasks:
        console.print()
        print_table(console, "Routers of each task", _tasks(inspection, console.width))
    print_lines(console, stands_out(inspection))


def facts(inspection: Inspection) -> list[str]:
    """Say in sentences what the adapter is, and what data its routers were watched on."""
    config, strategy = inspection.config, inspection.strategy
    base = config.base_model
    # A hub id as it is, a directory by its name.
    name = Path(base).name if base and Path(base).is_absolute() else base
    lines = [
        f"{plural(len(inspection.blocks), 'block')} with "
        f"{plural(len(inspection.modules), 'module')}, in which there are "
        f"{plural(inspection.module_experts, 'expert')} of rank {_rank(inspection)}: "
        f"top-{config.top_k}, {inspection.parameters:,} parameters"
        + (f", for {name}" if name else "")
        + (f"; shared out by {strategy['name']}." if strategy else ".")
    ]
    data = inspection.data
    if data is not None:
        lines.append(
            f"Routers watched on {data.source}: {plural(sum(data.rows.values()), 'row')}, "
            f"{data.tokens:,} tokens."
        )
    return lines


def print_inspected_modules(inspection: Inspection, console: Console) -> None:
    """Print number (n) and rank (r) of each module's experts, their size and their redundancy."""
    rows = inspection.modules
    columns: dict[str, Mapping[str, str]] = {
        "n": {row.name: str(len(row.experts)) for row in rows},
        "r": {row.name: str(row.rank) for row in rows},
        "norm": {row.name: decimal(row.mean_norm) for row in rows},
        "eff. rank": {row.name: f"{row.mean_effective_rank:.2f}" for row in rows},
        "redund.": {row.name: decimal(row.redundancy) for row in rows},
        "max": {row.name: decimal(row.max_cosine) for row in rows},
        "of": {row.name: "{}, {}".format(*row.closest) if row.closest else "-" for row in rows},
    }
    if inspection.routing is not None:
        del columns["of"]
        seen = {row.name: inspection.routing_of([row]) for row in rows}
        columns["entropy"] = {name: decimal(r.entropy if r else None) for name, r in seen.items()}
        columns["dead"] = {name: _dead(routing) for name, routing in seen.items()}
    legend = "n: experts, r: rank of each; max: the largest |cosine|"
    legend += ", of which two" if "of" in columns else ""
    print_by_block(console, f"Modules ({legend})", [row.name for row in rows], columns)


def _rank(inspection: Inspection) -> str:
    ranks = sorted({row.rank for row in inspection.modules})
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"


def _blocks(inspection: Inspection, width: int) -> Table:
    blocks = inspection.blocks
    names = [block.name for block in blocks]
    ranks = [
        str(block.ranks[0]) if len(block.ranks) == 1 else f"{block.ranks[0]}-{block.ranks[-1]}"
        for block in blocks
    ]
    norms = [decimal(block.mean_norm) for block in blocks]
    fixed = [7, max(4, *map(len, ranks)), max(4, *map(len, norms)), 9, 10]
    name_width, bar_width = split_width(width, fixed, names)
    table = plain_table(footer=True)
    table.add_column("block", footer="total", no_wrap=True)
    total = numeral(inspection.total_experts)
    table.add_column("experts", footer=total, justify="right", no_wrap=True)
    for head in ("rank", "norm", "eff. rank", "redundancy"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("", min_width=bar_width, no_wrap=True)
    most = max((block.redundancy or 0 for block in blocks), default=0) or 1
    for block, rank, norm in zip(blocks, ranks, norms, strict=True):
        table.add_row(
            shorten(block.name, name_width),
            numeral(block.experts),
            rank,
            norm,
            f"{block.mean_effective_rank:.2f}",
            decimal(block.redundancy),
            bar((block.redundancy or 0) / most, bar_width),
        )
    return table


def _routers(inspection: Inspection, width: int) -> Table:
    table = plain_table()
    table.add_column("block", no_wrap=True)
    heads = (*_ROUTING, *(["by task"] if len(inspection.tasks) > 1 else []))
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    left = width - sum(max(5, len(head)) for head in heads) - GAP * len(heads)
    for block in inspection.blocks:
        routing = block.routing
        cells = _cells(routing)
        if len(inspection.tasks) > 1:
            cells.append(decimal(routing.specialisation if routing else None))
        table.add_row(shorten(block.name, left), *cells)
    return table


def _tasks(inspection: Inspection, width: int) -> Table:
    table = plain_table()
    table.add_column("task", no_wrap=True)
    tokens = [f"{task.tokens:,}" for task in inspection.tasks]
    heads = ("tokens", "differs", *_ROUTING)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    fixed = max(6, *map(len, tokens)) + sum(max(5, len(head)) for head in heads[1:])
    left = width - fixed - GAP * len(heads)
    for task, count in zip(inspection.tasks, tokens, strict=True):
        name = task.name if len(task.name) <= left else f"{task.name[: left - 3]}..."
        table.add_row(Text(name), count, f"{task.distance:.1%}", *_cells(task.routing))
    return table


def _cells(routing: RoutingSummary | None) -> list[str]:
    if routing is None:
        return ["-"] * len(_ROUTING)
    return [
        decimal(routing.entropy),
        decimal(routing.top_gate),
        decimal(routing.load_cv),
        decimal(routing.load_max),
        _dead(routing),
    ]


def _dead(routing: RoutingSummary | None) -> str:
    return "-" if routing is None or routing.dead is None else str(routing.dead)
