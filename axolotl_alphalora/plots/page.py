"""One page that holds everything and loads nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from .depth import in_words

if TYPE_CHECKING:
    from .comparison import Series
    from .picture import Picture

__all__ = ["comparison_page", "picture_page"]

_STYLE = """
body { font: 15px/1.5 sans-serif; color: #222; max-width: 62em; margin: 2em auto; padding: 0 1em; }
svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.15em 0.8em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child, td.note { text-align: left; }
summary { cursor: pointer; font-weight: bold; }
"""


def picture_page(picture: Picture, svg: str) -> str:
    """Return a page with a picture's figure, sentences, tables and numbers.

    Args:
        picture: What is shown.
        svg: The figure as an SVG file.
    """
    parts = ["<h2>Blocks</h2>", _blocks(picture)]
    if picture.matrices:
        parts += [
            f"<details><summary>{len(picture.matrices)} matrices</summary>",
            _matrices(picture),
            "</details>",
        ]
    return _page(picture.title, svg, picture.notes, parts, picture.document)


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
            cells.append(_scores(scores))
        head.append(column.label)
        cells.append(in_words(column.numbers[block] for block in blocks))
    table = _table(head, zip(*cells, strict=True))
    return _page(title, svg, notes, ["<h2>Blocks</h2>", table], document)


def _page(
    title: str, svg: str, notes: Sequence[str], parts: Sequence[str], document: Mapping[str, Any]
) -> str:
    """Return a page with a figure, sentences, further elements and numbers as JSON."""
    # "<" ends the script for an HTML parser, whatever JSON says.
    numbers = json.dumps(document).replace("<", "\\u003c")
    paragraphs = "\n".join(f"<p>{escape(note)}</p>" for note in notes)
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{_inline(svg)}
{paragraphs}
{body}
<script type="application/json" id="numbers">{numbers}</script>
</body>
</html>
"""


def _inline(svg: str) -> str:
    """Return an SVG element without its file's prologue and metadata, which hold addresses."""
    element = svg[svg.index("<svg") :]
    return re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)


def _blocks(picture: Picture) -> str:
    blocks = picture.blocks
    head, cells = ["block"], [blocks]
    if picture.has_scores:
        head.append(picture.score_name)
        cells.append(_scores(picture.scores.values()))
    if picture.intervals:
        head.append("95 % range")
        ends = [picture.intervals.get(block) for block in blocks]
        lows = _scores(pair and pair[0] for pair in ends)
        highs = _scores(pair and pair[1] for pair in ends)
        cells.append(
            [
                low if pair is None else f"{low} - {high}"
                for pair, low, high in zip(ends, lows, highs, strict=True)
            ]
        )
    if picture.experts is not None:
        head.append(picture.number_name)
        cells.append(in_words(picture.experts[block] for block in blocks))
    return _table(head, zip(*cells, strict=True))


def _matrices(picture: Picture) -> str:
    head = ["module", "shape", "alpha", "x_min", "distance", "tail", "rank", "note"]
    rows = [
        [
            row.module,
            f"{row.shape[0]}x{row.shape[1]}",
            _number(row.alpha),
            "-" if row.x_min is None else f"{row.x_min:.4g}",
            _number(row.distance),
            "-" if row.tail_size is None else str(row.tail_size),
            f"{row.numerical_rank}/{row.num_eigenvalues}",
            row.note or "",
        ]
        for row in picture.matrices
    ]
    return _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(text)}</th>" for text in head)
    lines = ["<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows]
    body = "\n".join(lines)
    return f"<table>\n<thead><tr>{cells}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _scores(values: Iterable[float | None]) -> list[str]:
    """Return scores as text, with as many decimals as the largest needs for three digits."""
    scores = list(values)
    largest = max((abs(score) for score in scores if score is not None), default=0.0)
    decimals = max(3, 2 - math.floor(math.log10(largest))) if largest else 3
    return ["-" if score is None else f"{score:.{decimals}f}" for score in scores]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
