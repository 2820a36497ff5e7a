"""An inspected adapter as a picture or a page: heat maps, redundancy over depth, tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .depth import WIDTH, label_blocks, tidy
from .files import check_plot, save_figure
from .heatmap import COLUMNS, draw_heat_panels, heat_panels, panel_height

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..inspection import Inspection

__all__ = ["draw_inspection", "save_inspection"]

_REDUNDANCY_HEIGHT = 1.9
_TITLE_HEIGHT = 0.45
_FRAME_HEIGHT = 1.2
_TASKS_HEIGHT, _TASK_HEIGHT = 0.7, 0.2
_LINE = "#0072b2"
_TASK_COLOURS = "Purples"
_MOST_WRITTEN = 34


def save_inspection(
    inspection: Inspection, path: Path, title: str, notes: Sequence[str] = ()
) -> None:
    """Draw an inspection into a file, whole or not at all.

    A ``.html`` page holds the figure, the notes, tables of blocks, tasks, modules and experts and
    the numbers as JSON, and loads nothing from anywhere. Directories on the way are made.

    Args:
        inspection: What was found.
        path: The file; its suffix is one of :data:`~axolotl_alphalora.plots.SUFFIXES`.
        title: Heading.
        notes: Sentences for the page.

    Raises:
        ValueError: If the suffix is unknown.
        ImportError: If matplotlib is not installed.
        OSError: If the file cannot be written.
    """
    check_plot(path)
    from .inspection_page import inspection_page

    figure = draw_inspection(inspection, title)
    save_figure(figure, path, lambda svg: inspection_page(inspection, title, svg, notes))


def draw_inspection(inspection: Inspection, title: str) -> Figure:
    """Draw the heat maps, the redundancy over depth, and what tasks prefer if there are several."""
    from matplotlib.figure import Figure

    panels = heat_panels(inspection)
    rows = math.ceil(len(panels) / COLUMNS)
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
    import numpy as np

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
