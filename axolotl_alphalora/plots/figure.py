"""The figure: scores over depth, experts or distances below it, spectra at the bottom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from ..blocks import block_name
from .curves import draw_spectra, panels
from .depth import WIDTH, draw_bars, draw_numbers, label_blocks, number_label, numbers_fit, tidy

if TYPE_CHECKING:
    from .picture import Picture

__all__ = ["draw"]

_SCORES_HEIGHT = 2.6
_BARS_HEIGHT = 2.0
_PANEL_HEIGHT = 2.2
_SCORES = "#0072b2"


def draw(picture: Picture) -> Figure:
    """Draw everything that a picture holds."""
    chosen = panels(picture)
    rows = math.ceil(len(chosen) / 4)
    depth = _BARS_HEIGHT + (_SCORES_HEIGHT if picture.has_scores else 0.5)
    figure = Figure(figsize=(WIDTH, depth + _PANEL_HEIGHT * rows), layout="constrained")
    if not chosen:
        _draw_depth(figure, picture)
        return figure
    parts: Any = figure.subfigures(2, 1, height_ratios=[depth, _PANEL_HEIGHT * rows])
    _draw_depth(parts[0], picture)
    draw_spectra(parts[1], picture, chosen)
    return figure


def _draw_depth(figure: Any, picture: Picture) -> None:
    figure.suptitle(picture.title, parse_math=False)
    if picture.has_scores:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        _draw_scores(upper, picture)
    else:
        lower = figure.subplots()
    names = picture.blocks
    if picture.experts is None:
        draw_bars(lower, _distances(picture, names))
        lower.set_ylabel("distance (median)")
    else:
        numbers = [picture.experts[name] for name in names]
        draw_numbers(lower, numbers, written=numbers_fit(numbers))
        lower.set_ylabel(number_label(picture.number_name, numbers))
    label_blocks(lower, names)
    for axes in figure.axes:
        tidy(axes, names)


def _draw_scores(axes: Any, picture: Picture) -> None:
    for place, name in enumerate(picture.blocks):
        if name in picture.intervals:
            low, high = picture.intervals[name]
            axes.vlines(place, low, high, color=_SCORES, alpha=0.35, linewidth=4)
    scores = [math.nan if score is None else score for score in picture.scores.values()]
    axes.plot(range(len(scores)), scores, "o-", color=_SCORES, markersize=4, linewidth=1)
    said = ["the larger alpha, the less trained"] if picture.score_name == "alpha" else []
    said += ["bars: 95 % of resamples"] if picture.intervals else []
    axes.set_title(", ".join(said), fontsize="small", loc="left")
    axes.set_ylabel(picture.score_name)


def _distances(picture: Picture, names: Sequence[str]) -> list[float]:
    found: dict[str, list[float]] = {name: [] for name in names}
    for row in picture.matrices:
        if row.distance is not None:
            found[block_name(row.module)].append(row.distance)
    return [median(values) if values else 0.0 for values in found.values()]
