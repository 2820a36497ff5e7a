"""Pages that hold everything and load nothing: a figure, sentences, tables, and numbers as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .tables import PAGE, Bar, Cell, Table

_TEMPLATE = "page.html"


@dataclass(frozen=True)
class Part:
    """A table of a page.

    Attributes:
        heading: What stands above it.
        table: The table; its own title and caption are for other media.
        folded: Whether it is opened with a click.
    """

    heading: str
    table: Table
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """What stands on a page beside its figure.

    Attributes:
        title: Heading.
        notes: Sentences.
        parts: Tables.
        document: The numbers as JSON values.
    """

    title: str
    notes: Sequence[str]
    parts: Sequence[Part]
    document: Mapping[str, Any]

    def html(self, svg: str) -> str:
        """Return the page.

        Args:
            svg: The figure as an SVG file.
        """
        template = Environment(
            loader=PackageLoader(__package__, "."),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=StrictUndefined,
        ).get_template(_TEMPLATE)
        # "<" ends the script for an HTML parser, whatever JSON says.
        numbers = json.dumps(self.document, allow_nan=False).replace("<", "\\u003c")
        return template.render(
            title=self.title,
            svg=_inline(svg, self.title),
            notes=self.notes,
            parts=[(part.heading, part.table.on(PAGE), part.folded) for part in self.parts],
            text=_text,
            numbers=numbers,
        )


def _text(cell: Cell) -> str:
    assert not isinstance(cell, Bar), "bars are for a terminal: a page has its figure"
    return cell if isinstance(cell, str) else cell.text


def _inline(svg: str, title: str) -> str:
    """Return an SVG element without its file's prologue and metadata, which hold addresses."""
    element = svg[svg.index("<svg") :]
    element = element.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
    return re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
