"""What all panels over depth share: bars of numbers, and the blocks' labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

__all__ = [
    "WIDTH",
    "draw_bars",
    "draw_numbers",
    "in_words",
    "label_blocks",
    "number_label",
    "numbers_fit",
    "tidy",
]

WIDTH = 9.0
"""Width of a figure, in inches."""

_BARS = "#e69f00"
_MOST_TICKS = 32
_MOST_CHARACTERS = 145
_NUMBER_SIZE = 6.5


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
    """Return what runs of names begin with, such as ``model.layers``, and their places."""
    stacks = []
    for stack, run in groupby(range(len(names)), lambda place: names[place].rpartition(".")[0]):
        first, *rest = run
        stacks.append((stack, range(first, first + 1 + len(rest))))
    return stacks
