"""One page that holds everything and loads nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import Picture

__all__ = ["page"]

_STYLE = """
body { font: 15px/1.5 sans-serif; color: #222; max-width: 62em; margin: 2em auto; padding: 0 1em; }
svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.15em 0.8em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child, td.note { text-align: left; }
summary { cursor: pointer; font-weight: bold; }
"""


def page(picture: Picture, svg: str) -> str:
    """Return a page with the figure, the sentences, the tables and the numbers as JSON.

    Args:
        picture: What is shown.
        svg: The figure as an SVG file.
    """
    # "<" ends the script for an HTML parser, whatever JSON says.
    numbers = json.dumps(picture.document).replace("<", "\\u003c")
    notes = "\n".join(f"<p>{escape(note)}</p>" for note in picture.notes)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{escape(picture.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(picture.title)}</h1>
{_inline(svg)}
{notes}
<h2>Blocks</h2>
{_blocks(picture)}
<details><summary>{len(picture.matrices)} matrices</summary>
{_matrices(picture)}
</details>
<script type="application/json" id="numbers">{numbers}</script>
</body>
</html>
"""


def _inline(svg: str) -> str:
    """Return an SVG element without its file's prologue and metadata, which hold addresses."""
    element = svg[svg.index("<svg") :]
    return re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)


def _blocks(picture: Picture) -> str:
    head = ["block", "alpha"]
    head += ["95 % range"] if picture.intervals else []
    head += ["experts"] if picture.experts is not None else []
    rows = []
    for name, score in picture.scores.items():
        row = [name, _number(score)]
        if picture.intervals:
            ends = picture.intervals.get(name)
            row.append("-" if ends is None else f"{ends[0]:.2f} - {ends[1]:.2f}")
        if picture.experts is not None:
            row.append(str(picture.experts[name]))
        rows.append(row)
    return _table(head, rows)


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


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
