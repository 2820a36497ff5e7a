"""The figure: alpha over depth, experts or distances below it, spectra at the bottom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from ..blocks import block_name
from .curves import draw_spectra, panels

if TYPE_CHECKING:
    from . import Picture

__all__ = ["draw"]

_WIDTH = 9.0
_DEPTH_HEIGHT = 4.6
_PANEL_HEIGHT = 2.2
_MOST_TICKS = 32
_ALPHA, _BELOW = "#0072b2", "#e69f00"


def draw(picture: Picture) -> Figure:
    """Draw everything that a picture holds."""
    chosen = panels(picture)
    rows = math.ceil(len(chosen) / 4)
    height = _DEPTH_HEIGHT + _PANEL_HEIGHT * rows
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    if not chosen:
        _draw_depth(figure, picture)
        return figure
    ratios = [_DEPTH_HEIGHT, _PANEL_HEIGHT * rows]
    parts: Any = figure.subfigures(2, 1, height_ratios=ratios)
    _draw_depth(parts[0], picture)
    draw_spectra(parts[1], picture, chosen)
    return figure


def _draw_depth(figure: Any, picture: Picture) -> None:
    names = list(picture.scores)
    places = range(len(names))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    figure.suptitle(picture.title)
    for place, name in enumerate(names):
        if name in picture.intervals:
            low, high = picture.intervals[name]
            upper.vlines(place, low, high, color=_ALPHA, alpha=0.35, linewidth=4)
    alphas = [math.nan if score is None else score for score in picture.scores.values()]
    upper.plot(places, alphas, "o-", color=_ALPHA, markersize=4, linewidth=1)
    ranges = ", bars: 95 % of resamples" if picture.intervals else ""
    upper.set_title(f"the larger alpha, the less trained{ranges}", fontsize="small", loc="left")
    upper.set_ylabel("alpha")
    if picture.experts is not None:
        lower.bar(places, [picture.experts[name] for name in names], color=_BELOW)
        lower.set_ylabel("experts")
        lower.yaxis.get_major_locator().set_params(integer=True)
    else:
        lower.bar(places, _distances(picture, names), color=_BELOW)
        lower.set_ylabel("distance (median)")
    prefix, labels = _labels(names)
    step = math.ceil(len(names) / _MOST_TICKS)
    lower.set_xticks(list(places)[::step], labels[::step])
    if max(map(len, labels)) > 3:
        lower.tick_params(axis="x", rotation=90)
    lower.set_xlabel(f"block of {prefix}" if prefix else "block")
    for axes in (upper, lower):
        axes.grid(axis="y", linewidth=0.4)
        axes.spines[["top", "right"]].set_visible(False)


def _labels(names: Sequence[str]) -> tuple[str, list[str]]:
    """Return what all blocks' names begin with, and what follows it in each."""
    pairs = [name.rpartition(".") for name in names]
    prefixes = {prefix for prefix, _, _ in pairs}
    if len(prefixes) > 1:
        return "", list(names)
    return prefixes.pop(), [last for _, _, last in pairs]


def _distances(picture: Picture, names: Sequence[str]) -> list[float]:
    found: dict[str, list[float]] = {name: [] for name in names}
    for row in picture.matrices:
        if row.distance is not None:
            found[block_name(row.module)].append(row.distance)
    return [median(values) if values else 0.0 for values in found.values()]
