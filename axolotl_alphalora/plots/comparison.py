"""Several plans as one picture: experts over depth, a panel for each plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import check_plot, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Series", "draw_comparison", "save_comparison"]

_PANEL_HEIGHT = 1.15
_LINE = "#0072b2"


@dataclass(frozen=True)
class Series:
    """One plan of a comparison.

    Attributes:
        label: Its heading.
        numbers: Block name to the mean number of experts of its modules, in the order of depth.
        scores: Block name to score, None where there is none; empty if the plan goes by none.
    """

    label: str
    numbers: Mapping[str, float]
    scores: Mapping[str, float | None] = field(default_factory=dict)


def save_comparison(
    columns: Sequence[Series],
    path: Path,
    title: str,
    notes: Sequence[str] = (),
    document: Mapping[str, Any] | None = None,
    number_name: str = "experts",
) -> None:
    """Draw plans above each other into a file, whole or not at all.

    All panels have the same axes, and the first plan's outline is repeated in those of the others.
    A ``.html`` page holds the figure, a table of numbers and scores and the document as JSON, and
    loads nothing from anywhere. Directories on the way are made.

    Args:
        columns: The plans, one at least, of the same blocks.
        path: The file; its suffix is one of :data:`~axolotl_alphalora.plots.SUFFIXES`.
        title: Heading.
        notes: Sentences for the page.
        document: The numbers as JSON values, for the page.
        number_name: What the numbers are, where they are not spent on experts.

    Raises:
        ValueError: If the suffix is unknown, or two plans are not of the same blocks.
        ImportError: If matplotlib is not installed.
        OSError: If the file cannot be written.
    """
    check_plot(path)
    from .page import comparison_page

    figure = draw_comparison(columns, title, number_name)
    save_figure(
        figure, path, lambda svg: comparison_page(columns, title, svg, notes, document or {})
    )


def draw_comparison(columns: Sequence[Series], title: str, number_name: str = "experts") -> Figure:
    """Draw a panel for each plan.

    Raises:
        ValueError: If two plans are not of the same blocks.
    """
    from matplotlib.figure import Figure

    from .depth import WIDTH, draw_numbers, in_words, label_blocks, number_label, numbers_fit, tidy

    first = columns[0]
    blocks = list(first.numbers)
    for column in columns:
        if column.numbers.keys() != first.numbers.keys():
            raise ValueError(f"{column.label} and {first.label} are plans of different blocks")
    plans = [[column.numbers[block] for block in blocks] for column in columns]
    written = all(map(numbers_fit, plans))
    figure = Figure(figsize=(WIDTH, 1.1 + _PANEL_HEIGHT * len(columns)), layout="constrained")
    figure.suptitle(title, parse_math=False)
    panels = figure.subplots(len(columns), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, column, numbers in zip(panels, columns, plans, strict=True):
        draw_numbers(axes, numbers, written=written)
        # Means that are no binary fractions sum to a whole number but for round-off.
        total = round(math.fsum(numbers), 6)
        said = f"{column.label}, {in_words([total])[0]} in all"
        if column is not first:
            edges = [place - 0.5 for place in range(len(blocks) + 1)]
            axes.stairs(plans[0], edges, color=_LINE, linewidth=1, baseline=None)
            said += f" (line: {first.label})"
        axes.set_title(said, fontsize="small", loc="left", parse_math=False)
        tidy(axes, blocks)
    label_blocks(panels[-1], blocks)
    figure.supylabel(number_label(number_name, chain.from_iterable(plans)), fontsize="medium")
    return figure
