"""The figure of an inspected adapter: heat maps of experts, redundancy over depth, tasks.

A heat map is a panel for each kind of module with a row for each block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..blocks import kind_of, stack_of
from .figures import WIDTH, label_blocks, tidy

if TYPE_CHECKING:
    from ..inspection import Inspection, ModuleExperts

_COLUMNS = 4
_ROW_HEIGHT = 0.11
_LEAST_HEIGHT, _MOST_HEIGHT = 0.7, 9.0
_COLOURS = "PuOr_r"
_UNROUTED = "#a6a6a6"
_EDGES = "#888888"
_LIMITS = (1.44, 2.25, 4.0, 9.0)
_WITHIN = 0.98
_MOST_TICKS = 16
_REDUNDANCY_HEIGHT = 1.9
_TITLE_HEIGHT = 0.45
_FRAME_HEIGHT = 1.2
_TASKS_HEIGHT, _TASK_HEIGHT = 0.7, 0.2
_LINE = "#0072b2"
_TASK_COLOURS = "Purples"
_MOST_WRITTEN = 34


@dataclass(frozen=True)
class HeatPanel:
    """One kind of module.

    Attributes:
        title: The kind, with its stack of blocks if there are several.
        blocks: The blocks of its stack, in depth order; a row each.
        values: For each row the values of the block's experts, None where there is none to show;
            empty for a block without such a module.
        unrouted: Rows whose module has one expert and no router.
        dead: Row and expert of those that hardly get a token.
    """

    title: str
    blocks: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    unrouted: frozenset[int]
    dead: frozenset[tuple[int, int]]

    @property
    def width(self) -> int:
        """Most experts of a row."""
        return max(map(len, self.values))


def draw_inspection(inspection: Inspection, title: str) -> Figure:
    """Draw the heat maps, the redundancy over depth, and what tasks prefer if there are several."""
    panels = heat_panels(inspection)
    rows = math.ceil(len(panels) / _COLUMNS)
    tasks = inspection.tasks if len(inspection.tasks) > 1 else ()
    lower = [_REDUNDANCY_HEIGHT, *([_TASKS_HEIGHT + _TASK_HEIGHT * len(tasks)] if tasks else [])]
    heights = [rows * (panel_height(panels) + _TITLE_HEIGHT) + _FRAME_HEIGHT, sum(lower)]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    figure.suptitle(title, parse_math=False)
    parts: Any = figure.subfigures(2, 1, height_ratios=heights)
    draw_heat_panels(parts[0], panels, *_words(inspection))
    below = parts[1].subplots(len(lower), 1, sharex=True, squeeze=False, height_ratios=lower)[:, 0]
    _draw_redundancy(below[0], inspection)
    if tasks:
        _draw_tasks(parts[1], below[1], inspection)
    label_blocks(below[-1], [block.name for block in inspection.blocks])
    below[-1].xaxis.label.set_size("small")
    return figure


def _words(inspection: Inspection) -> tuple[str, str]:
    """Return what colours stand for, and what the other marks do."""
    marks = []
    if any(not row.routed for row in inspection.modules):
        marks.append("grey: one expert, not routed")
    if inspection.usage is None:
        return "norm / mean norm of the module", "; ".join(marks)
    if inspection.routing is not None and inspection.routing.dead:
        marks.append("x: dead, less than a tenth of its fair share")
    return "share of the tokens x experts (1: fair share)", "; ".join(marks)


def _draw_redundancy(axes: Any, inspection: Inspection) -> None:
    """Draw each block's mean redundancy and the range of its modules."""
    blocks = [block.name for block in inspection.blocks]
    means = []
    for place, block in enumerate(inspection.blocks):
        found = [row.redundancy for row in inspection.by_block[block.name]]
        known = [value for value in found if value is not None]
        if known:
            axes.vlines(place, min(known), max(known), color=_LINE, alpha=0.3, linewidth=4)
        means.append(math.nan if block.redundancy is None else block.redundancy)
    axes.plot(range(len(means)), means, "o-", color=_LINE, markersize=4, linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_xlim(-0.75, len(blocks) - 0.25)
    axes.set_ylabel("redundancy", fontsize="small")
    axes.set_title(
        "mean |cosine| between the experts of a module; bars: range of the block's modules",
        fontsize="small",
        loc="left",
    )
    axes.tick_params(labelsize="small")
    tidy(axes, blocks)


def _draw_tasks(figure: Any, axes: Any, inspection: Inspection) -> None:
    """Draw for each task and block which part of the tokens goes to other experts than usual."""
    blocks = [block.name for block in inspection.blocks]
    values = np.full((len(inspection.tasks), len(blocks)), np.nan)
    for row, task in enumerate(inspection.tasks):
        for column, block in enumerate(blocks):
            found = inspection.task_distance(task.name, inspection.by_block[block])
            values[row, column] = np.nan if found is None else found
    mesh = axes.pcolormesh(
        np.arange(len(blocks) + 1) - 0.5,
        np.arange(len(inspection.tasks) + 1) - 0.5,
        np.ma.masked_invalid(values),
        cmap=_TASK_COLOURS,
        vmin=0,
        edgecolors="#888888",
        linewidth=0.3,
    )
    names = [_shorten(task.name) for task in inspection.tasks]
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.tick_params(labelsize="small")
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.set_title(
        "part of a task's tokens that go to other experts than on average over the tasks",
        fontsize="small",
        loc="left",
    )
    bar = figure.colorbar(mesh, ax=axes, aspect=10, pad=0.02)
    bar.solids.set_rasterized(False)
    bar.solids.set_edgecolor("face")
    bar.ax.tick_params(labelsize="x-small")


def _shorten(name: str) -> str:
    return name if len(name) <= _MOST_WRITTEN else f"{name[: _MOST_WRITTEN - 3]}..."


def cell_values(inspection: Inspection, row: ModuleExperts) -> tuple[float | None, ...]:
    """Return what the colours of a module's experts stand for; 1 is the mean of the module.

    That is an expert's share of the tokens times N, or of the gates where every token goes to all
    experts; without data its norm in units of the mean.
    """
    from ..inspection import expert_shares

    if inspection.usage is None:
        return row.relative_norms
    usage = inspection.usage_of(row.name)
    if usage is None:
        return (None,) * len(row.experts)
    return tuple(share * len(row.experts) for share in expert_shares(usage))


def heat_panels(inspection: Inspection) -> list[HeatPanel]:
    """Return the panels of an adapter, in the order of a block's modules."""
    modules: dict[tuple[str, str], dict[str, ModuleExperts]] = {}
    blocks: dict[str, list[str]] = {}
    for block, rows in inspection.by_block.items():
        blocks.setdefault(stack_of(rows[0].name), []).append(block)
        for row in rows:
            modules.setdefault((stack_of(row.name), kind_of(row.name)), {})[block] = row
    found = []
    for (stack, kind), members in modules.items():
        names = blocks[stack]
        dead = set()
        for place, block in enumerate(names):
            usage = inspection.usage_of(members[block].name) if block in members else None
            if usage is not None and usage.chooses:
                dead |= {(place, expert) for expert in usage.dead}
        found.append(
            HeatPanel(
                title=kind if len(blocks) == 1 or stack == kind else f"{stack} {kind}",
                blocks=tuple(names),
                values=tuple(
                    cell_values(inspection, members[block]) if block in members else ()
                    for block in names
                ),
                unrouted=frozenset(
                    place
                    for place, block in enumerate(names)
                    if block in members and not members[block].routed
                ),
                dead=frozenset(dead),
            )
        )
    return found


def panel_height(panels: Sequence[HeatPanel]) -> float:
    """Return the height of a row of panels, in inches, without their titles."""
    rows = max(len(panel.blocks) for panel in panels)
    return min(max(rows * _ROW_HEIGHT, _LEAST_HEIGHT), _MOST_HEIGHT)


def draw_heat_panels(figure: Any, panels: Sequence[HeatPanel], label: str, legend: str) -> None:
    """Draw the panels with one scale of colours, which is logarithmic around 1.

    Args:
        figure: Where.
        panels: The panels, one at least.
        label: What the colours stand for.
        legend: What the other marks stand for.
    """
    limit = _limit(panels)
    norm = LogNorm(1 / limit, limit)
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    grid = figure.subplots(rows, columns, squeeze=False)
    width = max(panel.width for panel in panels)
    coloured = None
    for place, (panel, axes) in enumerate(zip(panels, grid.flat, strict=False)):
        coloured = _draw(axes, panel, width, norm)
        axes.set_title(panel.title, fontsize="small", parse_math=False)
        if place % columns and panel.blocks == panels[place - 1].blocks:
            axes.set_yticklabels([])
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    figure.supylabel("block", fontsize="small")
    figure.supxlabel(f"expert ({legend})" if legend else "expert", fontsize="small")
    _draw_scale(figure, coloured, grid, limit, label)


def _limit(panels: Sequence[HeatPanel]) -> float:
    """Return where the colours end: the least limit that nearly all values keep to, or the last."""
    values = chain.from_iterable(row for panel in panels for row in panel.values)
    far = sorted(max(v, 1 / v) if v else math.inf for v in values if v is not None)
    if not far:
        return _LIMITS[0]
    most = far[math.ceil(_WITHIN * len(far)) - 1]
    return next((limit for limit in _LIMITS if most <= limit), _LIMITS[-1])


def _draw(axes: Any, panel: HeatPanel, width: int, norm: Any) -> Any:
    """Draw a panel's cells; an expert that is not there has none."""
    cells, values = [], []
    for place, row in enumerate(panel.values):
        for expert, value in enumerate(row):
            cell = Rectangle((expert - 0.5, place - 0.5), 1, 1, edgecolor=_EDGES, linewidth=0.3)
            if place in panel.unrouted or value is None:
                cell.set_facecolor(_UNROUTED if place in panel.unrouted else "white")
                axes.add_patch(cell)
            else:
                cells.append(cell)
                values.append(max(value, norm.vmin))
    coloured = PatchCollection(
        cells, cmap=_COLOURS, norm=norm, edgecolors=_EDGES, linewidths=0.3, array=values
    )
    coloured.set_gid(f"experts-{panel.title}")
    axes.add_collection(coloured)
    if panel.dead:
        places, experts = zip(*sorted(panel.dead), strict=True)
        axes.plot(experts, places, "x", color="white", markersize=3, markeredgewidth=0.8)
    axes.set_xlim(-0.6, width - 0.4)
    axes.set_ylim(len(panel.blocks) - 0.4, -0.6)
    names = [block.rpartition(".")[2] for block in panel.blocks]
    step = math.ceil(len(names) / _MOST_TICKS)
    axes.set_yticks(range(0, len(names), step), names[::step])
    axes.set_xticks(range(0, width, math.ceil(width / 7)))
    axes.tick_params(labelsize="x-small", length=2)
    axes.spines[:].set_visible(False)
    return coloured


def _draw_scale(figure: Any, coloured: Any, grid: Any, limit: float, label: str) -> None:
    """Draw the scale of colours as vectors: a picture of its own would have an address."""
    bar = figure.colorbar(
        coloured, ax=grid, location="top", shrink=0.5, aspect=45, extend="both", pad=0.02
    )
    bar.solids.set_rasterized(False)
    bar.solids.set_edgecolor("face")
    ticks = [limit ** (step / 2) for step in (-2, -1, 0, 1, 2)]
    bar.set_ticks(ticks, labels=[f"{round(tick, 2):g}" for tick in ticks])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize="x-small")
    bar.set_label(label, fontsize="small")
