"""Panels of spectra with their fits, for the blocks of a figure that differ the most."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..blocks import block_name, group_by_block

if TYPE_CHECKING:
    from ..settings import MatrixQuality
    from ..spectral import Spectra

_MOST_PANELS = 8
_POINTS = 300
_COLOURS = ("#d55e00", "#009e73")


def panels(
    spectra: Spectra, matrices: Iterable[MatrixQuality], scores: Mapping[str, float | None]
) -> dict[str, list[MatrixQuality]]:
    """Choose the matrices whose spectra are drawn: those of the blocks that differ the most.

    Args:
        spectra: All spectra.
        matrices: What was measured of each matrix.
        scores: Block name to score, None where there is none.

    Returns:
        Kind of matrix to the one of the block with the largest score and the one of the block with
        the smallest (the least and the best trained by alpha), as far as they are there; the first
        eight kinds, in the model's order.
    """
    scored = {name: score for name, score in scores.items() if score is not None}
    if not scored:
        return {}
    ends = [max(scored, key=lambda b: scored[b]), min(scored, key=lambda b: scored[b])]
    known = {row.module: row for row in matrices if row.module in spectra.values}
    blocks = group_by_block(known)
    chosen: dict[str, list[MatrixQuality]] = {}
    for block in dict.fromkeys(ends):
        for module in blocks.get(block, []):
            chosen.setdefault(module.removeprefix(f"{block}."), []).append(known[module])
    return dict(list(chosen.items())[:_MOST_PANELS])


def draw_spectra(
    figure: Any, spectra: Spectra, chosen: Mapping[str, Sequence[MatrixQuality]]
) -> None:
    """Draw a panel for each kind: share of eigenvalues above a value, on log-log axes."""
    from matplotlib.lines import Line2D

    columns = min(4, len(chosen))
    grid = figure.subplots(math.ceil(len(chosen) / columns), columns, squeeze=False).flat
    blocks = dict.fromkeys(block_name(row.module) for rows in chosen.values() for row in rows)
    colours = dict(zip(blocks, _COLOURS, strict=False))
    for (kind, rows), axes in zip(chosen.items(), grid, strict=False):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(kind, fontsize="small")
        axes.tick_params(labelsize="x-small")
        axes.grid(linewidth=0.3)
        for row in rows:
            _draw_one(axes, spectra, row, colours[block_name(row.module)])
        if any(row.alpha is not None for row in rows):
            axes.legend(fontsize="x-small", loc="lower left", handlelength=1)
    for axes in list(grid):
        axes.set_visible(False)
    names = [
        Line2D([], [], color=colour, marker=".", linestyle="", label=block)
        for block, colour in colours.items()
    ]
    names.append(Line2D([], [], color="black", linewidth=1, label="fitted tail, from x_min (|)"))
    figure.legend(handles=names, loc="outside upper center", ncols=3, fontsize="small")
    figure.supylabel("share of eigenvalues above", fontsize="small")
    figure.supxlabel("eigenvalue", fontsize="small")


def _draw_one(axes: Any, spectra: Spectra, row: MatrixQuality, colour: str) -> None:
    values = _eigenvalues(spectra, row)
    size = len(values)
    if size == 0:
        return
    shares = [(size - place) / size for place in _places(size)]
    axes.plot(
        [values[place] for place in _places(size)],
        shares,
        ".",
        color=colour,
        markersize=2.5,
        alpha=0.7,
    )
    if row.alpha is None or row.x_min is None or row.tail_size is None:
        return
    start, top = row.tail_size / size, values[-1]
    end = start * (top / row.x_min) ** (1 - row.alpha)
    axes.plot([row.x_min, top], [start, end], "-", color=colour, label=f"alpha {row.alpha:.2f}")
    axes.plot([row.x_min], [start], "|", color=colour, markersize=14, markeredgewidth=1.5)


def _eigenvalues(spectra: Spectra, row: MatrixQuality) -> list[float]:
    """Return a matrix's significant eigenvalues, ascending."""
    from ..spectral.spectrum import pool

    window = spectra.window or spectra.shapes[row.module]
    return pool(spectra.values[row.module], window).sort().values.tolist()


def _places(size: int) -> list[int]:
    """Return indices that thin the bulk and keep the upper end, evenly on the log of the rank."""
    if size <= _POINTS:
        return list(range(size))
    ranks = {round(size ** (step / (_POINTS - 1))) for step in range(_POINTS)}
    return sorted(size - rank for rank in ranks)
