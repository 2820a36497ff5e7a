"""The pages of a picture and of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .depth import in_words
from .elements import decimal, details, html_table, score_texts, whole_page

if TYPE_CHECKING:
    from .comparison import Series
    from .picture import Picture

__all__ = ["comparison_page", "picture_page"]


def picture_page(picture: Picture, svg: str) -> str:
    """Return a page with a picture's figure, sentences, tables and numbers.

    Args:
        picture: What is shown.
        svg: The figure as an SVG file.
    """
    parts = ["<h2>Blocks</h2>", _blocks(picture)]
    if picture.matrices:
        parts.append(details(f"{len(picture.matrices)} matrices", _matrices(picture)))
    return whole_page(picture.title, svg, picture.notes, parts, picture.document)


def comparison_page(
    columns: Sequence[Series],
    title: str,
    svg: str,
    notes: Sequence[str],
    document: Mapping[str, Any],
) -> str:
    """Return a page with a comparison's figure, sentences, numbers and scores.

    Args:
        columns: The plans, of the same blocks.
        title: Heading.
        svg: The figure as an SVG file.
        notes: Sentences.
        document: The numbers as JSON values.
    """
    blocks = list(columns[0].numbers)
    head, cells = ["block"], [blocks]
    for column in columns:
        scores = [column.scores.get(block) for block in blocks]
        if any(score is not None for score in scores):
            head.append(f"{column.label}: score")
            cells.append(score_texts(scores))
        head.append(column.label)
        cells.append(in_words(column.numbers[block] for block in blocks))
    table = html_table(head, zip(*cells, strict=True))
    return whole_page(title, svg, notes, ["<h2>Blocks</h2>", table], document)


def _blocks(picture: Picture) -> str:
    blocks = picture.blocks
    head, cells = ["block"], [blocks]
    if picture.has_scores:
        head.append(picture.score_name)
        cells.append(score_texts(picture.scores.values()))
    if picture.intervals:
        head.append("95 % range")
        ends = [picture.intervals.get(block) for block in blocks]
        lows = score_texts(pair and pair[0] for pair in ends)
        highs = score_texts(pair and pair[1] for pair in ends)
        cells.append(
            [
                low if pair is None else f"{low} - {high}"
                for pair, low, high in zip(ends, lows, highs, strict=True)
            ]
        )
    if picture.experts is not None:
        head.append(picture.number_name)
        cells.append(in_words(picture.experts[block] for block in blocks))
    return html_table(head, zip(*cells, strict=True))


def _matrices(picture: Picture) -> str:
    head = ["module", "shape", "alpha", "x_min", "distance", "tail", "rank", "note"]
    rows = [
        [
            row.module,
            f"{row.shape[0]}x{row.shape[1]}",
            decimal(row.alpha),
            "-" if row.x_min is None else f"{row.x_min:.4g}",
            decimal(row.distance),
            "-" if row.tail_size is None else str(row.tail_size),
            f"{row.numerical_rank}/{row.num_eigenvalues}",
            row.note or "",
        ]
        for row in picture.matrices
    ]
    return html_table(head, rows)
