"""The files that can be drawn to."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SUFFIXES", "check_plot", "save_figure"]

SUFFIXES = (".png", ".svg", ".pdf", ".html")
"""Kinds of files that can be drawn to."""

_DPI = 150


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


def save_figure(figure: Figure, path: Path, page: Callable[[str], str]) -> None:
    """Write a figure into a file, whole or not at all; the same each time.

    Args:
        figure: The figure.
        path: The file; its suffix is one of :data:`SUFFIXES`. Directories on the way are made.
        page: Makes a ``.html`` page from the figure as an SVG file.

    Raises:
        OSError: If the file cannot be written.
    """
    suffix = path.suffix.lower()
    content: str | bytes
    if suffix == ".html":
        content = page(_render(figure, "svg").decode())
    else:
        content = _render(figure, suffix.removeprefix("."))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)


def _render(figure: Figure, kind: str) -> bytes:
    """Return a figure as a file's content, without a date."""
    from matplotlib import rc_context

    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "alphalora"}):
        figure.savefig(buffer, format=kind, dpi=_DPI, metadata=dates.get(kind))
    return buffer.getvalue()
