"""Files with pictures: of a plan, an analysis, a comparison and an inspected adapter.

A page holds the figure, sentences, tables and the numbers as JSON, and loads nothing from anywhere;
the other files hold the figure alone. matplotlib is optional, and imported when something is drawn.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_whole
from .adapter_sentences import facts, stands_out
from .adapter_tables import (
    blocks_table,
    experts_table,
    modules_table,
    routers_table,
    tasks_table,
    terms_table,
)
from .documents import inspection_document
from .findings import BlockScores, Findings
from .plan_sentences import summary
from .plan_tables import analysis_table, matrices_table, plan_table, plans_table
from .quality_sentences import explain, explain_plan
from .tables import PAGE, Bar, Cell, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..allocation import Plan
    from ..inspection import Inspection
    from ..planning import Compared
    from ..spectral import Spectra

SUFFIXES = (".png", ".svg", ".pdf", ".html")
"""Kinds of files that can be drawn to."""

_DPI = 150


def check_plot(path: Path) -> None:
    """Check that a file can be drawn to, before any work is done for it.

    Raises:
        ValueError: If its suffix is none of `SUFFIXES`.
        ImportError: If matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"cannot draw {path}: its name must end in one of {', '.join(SUFFIXES)}")
    if find_spec("matplotlib") is None:
        raise ImportError(
            "drawing needs matplotlib: `pip install matplotlib`, or `pip install '.[plot]'` in a "
            "checkout of axolotl-alphalora"
        )


def save_plan(
    plan: Plan, findings: Findings | None, path: Path, spectra: Spectra | None = None
) -> None:
    """Draw a plan over depth into a file, whole or not at all.

    Args:
        plan: The plan.
        findings: What it records of matrices, if anything was measured.
        path: The file; its suffix is one of `SUFFIXES`. Directories on the way are made.
        spectra: What to draw with their fits, for the least and the best trained block.

    Raises:
        ValueError: If the suffix is unknown.
        ImportError: If matplotlib is not installed.
        OSError: If the file cannot be written.
    """
    check_plot(path)
    from .figures import Picture, draw

    scores = BlockScores.of(plan, findings)
    matrices = findings.matrices if findings else ()
    control = f" (control: {plan.control})" if plan.control else ""
    picture = Picture(
        title=f"AlphaLoRA experts: {Path(plan.base_model).name}{control}",
        scores={block: scores.values.get(block) for block in plan.block_numbers},
        intervals=scores.intervals,
        experts=plan.block_numbers,
        matrices=matrices,
        spectra=spectra,
        score_name=scores.name,
        number_name=number_name(plan),
    )
    parts = [Part("Blocks", plan_table(plan, findings))]
    if matrices:
        parts.append(Part(f"{len(matrices)} matrices", matrices_table(matrices), folded=True))
    notes = [*summary(plan), *explain_plan(plan, findings)]
    _save(draw(picture), path, Page(picture.title, notes, parts, plan.to_dict()))


def save_analysis(
    findings: Findings,
    model: str,
    path: Path,
    document: Mapping[str, Any],
    spectra: Spectra | None = None,
) -> None:
    """Draw an analysis over depth into a file, as `save_plan`.

    Args:
        findings: What was measured.
        model: The model's directory or hub id.
        path: The file.
        document: The analysis as JSON values, for the page.
        spectra: What to draw with their fits, for the least and the best trained block.
    """
    check_plot(path)
    from .figures import Picture, draw

    picture = Picture(
        title=f"Layer quality: {Path(model).name}",
        scores=findings.scores,
        intervals=findings.intervals,
        matrices=findings.matrices,
        spectra=spectra,
    )
    rows = findings.matrices
    parts = [
        Part("Blocks", analysis_table(findings, model)),
        Part(f"{len(rows)} matrices", matrices_table(rows), folded=True),
    ]
    _save(draw(picture), path, Page(picture.title, explain(findings), parts, document))


def save_comparison(plans: Sequence[Compared], path: Path, document: Mapping[str, Any]) -> None:
    """Draw plans above each other into a file, as `save_plan`.

    Args:
        plans: The plans, one at least, of the same blocks.
        path: The file.
        document: The comparison as JSON values, for the page.
    """
    check_plot(path)
    from .figures import draw_comparison

    first = plans[0].plan
    title = f"Plans for {Path(first.base_model).name}"
    numbers = {one.label: one.plan.block_numbers for one in plans}
    figure = draw_comparison(numbers, title, number_name(first))
    _save(figure, path, Page(title, [], [Part("Blocks", plans_table(plans))], document))


def save_inspection(inspection: Inspection, path: Path, title: str) -> None:
    """Draw an inspected adapter into a file, as `save_plan`.

    Args:
        inspection: What was found.
        path: The file.
        title: Heading.
    """
    check_plot(path)
    from .heatmaps import draw_inspection

    parts = [Part("Blocks", blocks_table(inspection, title))]
    if inspection.routing is not None:
        parts.append(Part("Routers", routers_table(inspection)))
    if inspection.tasks:
        parts.append(Part("Tasks", tasks_table(inspection)))
    modules, experts = len(inspection.modules), inspection.module_experts
    parts += [
        Part("What the words mean", terms_table(inspection), folded=True),
        Part(f"{modules} modules", modules_table(inspection), folded=True),
        Part(f"{experts:,} experts", experts_table(inspection), folded=True),
    ]
    notes = [*facts(inspection), *stands_out(inspection)]
    figure = draw_inspection(inspection, title)
    _save(figure, path, Page(title, notes, parts, inspection_document(inspection)))


def number_name(plan: Plan) -> str:
    """Say what a plan's numbers are: experts, or ranks."""
    return "experts" if plan.spend == "experts" else f"rank / {plan.rank}"


def _save(figure: Figure, path: Path, page: Page) -> None:
    """Write a figure, or the page that it is in; the same each time."""
    suffix = path.suffix.lower()
    content: str | bytes
    if suffix == ".html":
        content = page.html(_render(figure, "svg").decode())
    else:
        content = _render(figure, suffix.removeprefix("."))
    write_whole(path, content)


def _render(figure: Figure, kind: str) -> bytes:
    """Return a figure as a file's content, without a date."""
    from matplotlib import rc_context

    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "alphalora"}):
        figure.savefig(buffer, format=kind, dpi=_DPI, metadata=dates.get(kind))
    return buffer.getvalue()


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
        from jinja2 import Environment, PackageLoader, StrictUndefined

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
