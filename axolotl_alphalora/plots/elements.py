"""The frame of a page that holds everything and loads nothing, and its tables."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["decimal", "details", "html_table", "score_texts", "whole_page"]

_STYLE = """
body { font: 15px/1.5 sans-serif; color: #222; max-width: 62em; margin: 2em auto; padding: 0 1em; }
svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.15em 0.8em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child, td.note { text-align: left; }
summary { cursor: pointer; font-weight: bold; }
details { overflow-x: auto; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def whole_page(
    title: str, svg: str, notes: Sequence[str], parts: Sequence[str], document: Mapping[str, Any]
) -> str:
    """Return a page with a figure, sentences, further elements and numbers as JSON."""
    # "<" ends the script for an HTML parser, whatever JSON says.
    numbers = json.dumps(document, allow_nan=False).replace("<", "\\u003c")
    paragraphs = "\n".join(f"<p>{escape(note)}</p>" for note in notes)
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{_inline(svg, title)}
{paragraphs}
{body}
<script type="application/json" id="numbers">{numbers}</script>
</body>
</html>
"""


def details(summary: str, content: str) -> str:
    """Return an element that is opened with a click."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>"


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of texts."""
    cells = "".join(f"<th>{escape(text)}</th>" for text in head)
    lines = ["<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows]
    body = "\n".join(lines)
    return f"<table>\n<thead><tr>{cells}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def score_texts(values: Iterable[float | None]) -> list[str]:
    """Return scores as text, with as many decimals as the largest needs for three digits."""
    found = list(values)
    largest = max((abs(score) for score in found if score is not None), default=0.0)
    decimals = max(3, 2 - math.floor(math.log10(largest))) if largest else 3
    return ["-" if score is None else f"{score:.{decimals}f}" for score in found]


def decimal(value: float | None) -> str:
    """Return three decimals; a dash for None."""
    return "-" if value is None else f"{value:.3f}"


def _inline(svg: str, title: str) -> str:
    """Return an SVG element without its file's prologue and metadata, which hold addresses."""
    element = svg[svg.index("<svg") :]
    element = element.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
    return re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
