"""Figures over depth: of a plan or an analysis with its spectra, and of plans above each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from statistics import median
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from ..blocks import block_name
from .spectra_panels import draw_spectra, panels

if TYPE_CHECKING:
    from ..settings import MatrixQuality
    from ..spectral import Spectra


WIDTH = 9.0
"""Width of a figure, in inches."""

_SCORES_HEIGHT = 2.6
_BARS_HEIGHT = 2.0
_SPECTRA_HEIGHT = 2.2
_PLAN_HEIGHT = 1.15
_BARS = "#e69f00"
_LINE = "#0072b2"
_MOST_TICKS = 32
_MOST_CHARACTERS = 145
_NUMBER_SIZE = 6.5


@dataclass(frozen=True)
class Picture:
    """What is to be drawn.

    Attributes:
        title: Heading.
        scores: Block name to score, in the order of depth; None where there is none. Without a
            score in any block experts alone are drawn.
        intervals: Block name to the interval of its score, where there is one.
        experts: Block name to number of experts, the mean of its modules where they differ; None
            draws the distances of the fits instead.
        matrices: What was measured of each matrix.
        spectra: The spectra to be drawn with their fits; None draws none.
        score_name: What the scores are.
        number_name: What the numbers of experts are, where a plan spends them on something else.
    """

    title: str
    scores: Mapping[str, float | None]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    experts: Mapping[str, float] | None = None
    matrices: Sequence[MatrixQuality] = ()
    spectra: Spectra | None = None
    score_name: str = "alpha"
    number_name: str = "experts"

    @property
    def blocks(self) -> list[str]:
        """The blocks' names, in the order of depth."""
        return list(self.scores or self.experts or {})

    @property
    def has_scores(self) -> bool:
        """Whether any block has a score."""
        return any(score is not None for score in self.scores.values())


def draw(picture: Picture) -> Figure:
    """Draw scores over depth, experts or distances below them, and spectra at the bottom."""
    chosen = {}
    if picture.spectra is not None:
        chosen = panels(picture.spectra, picture.matrices, picture.scores)
    rows = math.ceil(len(chosen) / 4)
    depth = _BARS_HEIGHT + (_SCORES_HEIGHT if picture.has_scores else 0.5)
    figure = Figure(figsize=(WIDTH, depth + _SPECTRA_HEIGHT * rows), layout="constrained")
    if picture.spectra is None or not chosen:
        _draw_depth(figure, picture)
        return figure
    parts: Any = figure.subfigures(2, 1, height_ratios=[depth, _SPECTRA_HEIGHT * rows])
    _draw_depth(parts[0], picture)
    draw_spectra(parts[1], picture.spectra, chosen)
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
            axes.vlines(place, low, high, color=_LINE, alpha=0.35, linewidth=4)
    scores = [math.nan if score is None else score for score in picture.scores.values()]
    axes.plot(range(len(scores)), scores, "o-", color=_LINE, markersize=4, linewidth=1)
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


def draw_comparison(
    plans: Mapping[str, Mapping[str, float]], title: str, number_name: str = "experts"
) -> Figure:
    """Draw a panel for each plan, all with the same axes, with the first one's outline.

    Args:
        plans: Label to block name to the mean number of experts of its modules; the first one's
            blocks are in the order of depth.
        title: Heading.
        number_name: What the numbers are, where they are not spent on experts.

    Raises:
        ValueError: If two plans are not of the same blocks.
    """
    (first, outline), *_ = plans.items()
    blocks = list(outline)
    for label, numbers in plans.items():
        if numbers.keys() != outline.keys():
            raise ValueError(f"{label} and {first} are plans of different blocks")
    heights = {label: [numbers[block] for block in blocks] for label, numbers in plans.items()}
    written = all(map(numbers_fit, heights.values()))
    figure = Figure(figsize=(WIDTH, 1.1 + _PLAN_HEIGHT * len(plans)), layout="constrained")
    figure.suptitle(title, parse_math=False)
    grid = figure.subplots(len(plans), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (label, values) in zip(grid, heights.items(), strict=True):
        draw_numbers(axes, values, written=written)
        # Means that are no binary fractions sum to a whole number but for round-off.
        total = round(math.fsum(values), 6)
        said = f"{label}, {in_words([total])[0]} in all"
        if label != first:
            edges = [place - 0.5 for place in range(len(blocks) + 1)]
            axes.stairs(heights[first], edges, color=_LINE, linewidth=1, baseline=None)
            said += f" (line: {first})"
        axes.set_title(said, fontsize="small", loc="left", parse_math=False)
        tidy(axes, blocks)
    label_blocks(grid[-1], blocks)
    label = number_label(number_name, chain.from_iterable(heights.values()))
    figure.supylabel(label, fontsize="medium")
    return figure


def draw_bars(axes: Any, values: Sequence[float]) -> None:
    """Draw a bar for each block."""
    axes.bar(range(len(values)), values, color=_BARS)
    axes.set_xlim(-0.75, len(values) - 0.25)


def numbers_fit(numbers: Sequence[float]) -> bool:
    """Tell whether the blocks' numbers can be written beside each other and still be read."""
    return len(numbers) * (1 + max(map(len, in_words(numbers)))) <= _MOST_CHARACTERS


def draw_numbers(axes: Any, numbers: Sequence[float], *, written: bool) -> None:
    """Draw a bar for each block's number of experts.

    Args:
        axes: Where.
        numbers: The blocks' numbers.
        written: Whether each is also written at the foot of its bar.
    """
    draw_bars(axes, numbers)
    axes.yaxis.get_major_locator().set_params(integer=True)
    if not written:
        return
    for place, text in enumerate(in_words(numbers)):
        axes.annotate(
            text,
            (place, 0),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=_NUMBER_SIZE,
        )


def number_label(name: str, numbers: Iterable[float]) -> str:
    """Return the label of numbers, which says so if some are means."""
    return name if all(number == int(number) for number in numbers) else f"{name} (mean)"


def in_words(numbers: Iterable[float]) -> list[str]:
    """Return numbers as text: with one decimal if any of them is not whole."""
    values = list(numbers)
    decimals = 0 if all(value == int(value) for value in values) else 1
    return [f"{value:.{decimals}f}" for value in values]


def label_blocks(axes: Any, names: Sequence[str]) -> None:
    """Label the places 0, 1, ... with the ends of the blocks' names, as many as fit.

    What the names begin with, their stack, is in the axis' label.
    """
    step = math.ceil(len(names) / _MOST_TICKS)
    runs = _stacks(names)
    places = []
    for _, run in runs:
        # The last label must not touch the first one of the next stack.
        free = run.stop if run.stop == len(names) else run.stop - step
        places += [place for place in run[::step] if place == run.start or place <= free]
    labels = [names[place].rpartition(".")[2] for place in places]
    axes.set_xticks(places, labels)
    if max(map(len, labels)) > 3:
        axes.tick_params(axis="x", rotation=90, labelsize="small")
    stacks = [stack for stack, _ in runs if stack]
    axes.set_xlabel(f"block of {', then of '.join(stacks)}" if stacks else "block")


def tidy(axes: Any, names: Sequence[str]) -> None:
    """Draw lines to read heights by and lines between stacks of blocks, and no frame."""
    for _, run in _stacks(names)[1:]:
        axes.axvline(run.start - 0.5, color="black", linewidth=0.8, linestyle=":")
    axes.grid(axis="y", linewidth=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _stacks(names: Sequence[str]) -> list[tuple[str, range]]:
    """Return what runs of names begin with, such as `model.layers`, and their places."""
    stacks = []
    for stack, run in groupby(range(len(names)), lambda place: names[place].rpartition(".")[0]):
        first, *rest = run
        stacks.append((stack, range(first, first + 1 + len(rest))))
    return stacks
