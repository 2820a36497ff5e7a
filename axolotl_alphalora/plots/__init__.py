"""Pictures of a plan or an analysis: alpha and experts over depth, spectra with their fits.

matplotlib is optional and imported when something is drawn, without its global state.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..storage import write_whole

if TYPE_CHECKING:
    from ..spectral import MatrixQuality, Spectra

__all__ = ["SUFFIXES", "Picture", "check_plot", "save_plot"]

SUFFIXES = (".png", ".svg", ".pdf", ".html")
"""Kinds of files that can be drawn to."""

_DPI = 150


@dataclass(frozen=True)
class Picture:
    """What is to be drawn.

    Attributes:
        title: Heading.
        scores: Block name to alpha, in the order of depth; None where there is none.
        intervals: Block name to the interval of its alpha, where there is one.
        experts: Block name to number of experts; None draws the distances of the fits instead.
        matrices: What was measured of each matrix.
        spectra: The spectra to be drawn with their fits; None draws none.
        notes: Sentences for the page.
        document: The numbers as JSON values, for the page.
    """

    title: str
    scores: Mapping[str, float | None]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    experts: Mapping[str, int] | None = None
    matrices: Sequence[MatrixQuality] = ()
    spectra: Spectra | None = None
    notes: Sequence[str] = ()
    document: Mapping[str, Any] = field(default_factory=dict)


def check_plot(path: Path) -> None:
    """Check that a file can be drawn to, before any work is done for it.

    Raises:
        ValueError: If its suffix is none of :data:`SUFFIXES`.
        ImportError: If matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"cannot draw {path}: its name must end in one of {', '.join(SUFFIXES)}")
    if find_spec("matplotlib") is None:
        raise ImportError(
            'drawing needs matplotlib: `pip install "axolotl-alphalora[plot]"` or '
            "`pip install matplotlib`"
        )


def save_plot(picture: Picture, path: Path) -> None:
    """Draw into a file, whole or not at all.

    A ``.html`` page holds the figure, tables of blocks and matrices and the numbers as JSON, and
    loads nothing from anywhere. Directories on the way are made.

    Args:
        picture: What to draw.
        path: The file; its suffix is one of :data:`SUFFIXES`.

    Raises:
        ValueError: If the suffix is unknown.
        ImportError: If matplotlib is not installed.
        OSError: If the file cannot be written.
    """
    check_plot(path)
    from .figure import draw

    suffix = path.suffix.lower()
    figure = draw(picture)
    if suffix == ".html":
        from .page import page

        content: str | bytes = page(picture, _render(figure, "svg").decode())
    else:
        content = _render(figure, suffix.removeprefix("."))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)


def _render(figure: Any, kind: str) -> bytes:
    """Return a figure as a file's content; the same each time."""
    from matplotlib import rc_context

    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "alphalora"}):
        figure.savefig(buffer, format=kind, dpi=_DPI, metadata=dates.get(kind))
    return buffer.getvalue()
