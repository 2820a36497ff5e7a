"""One plan or analysis as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import check_plot, save_figure

if TYPE_CHECKING:
    from ..spectral import MatrixQuality, Spectra

__all__ = ["Picture", "save_plot"]


@dataclass(frozen=True)
class Picture:
    """What is to be drawn.

    Attributes:
        title: Heading.
        scores: Block name to score, in the order of depth; None where there is none. Without a
            score in any block experts alone are drawn.
        intervals: Block name to the interval of its score, where there is one.
        experts: Block name to number of experts, the mean of its modules where they differ; None
            draws the distances of the fits instead.
        matrices: What was measured of each matrix.
        spectra: The spectra to be drawn with their fits; None draws none.
        notes: Sentences for the page.
        document: The numbers as JSON values, for the page.
        score_name: What the scores are.
        number_name: What the numbers of experts are, where a plan spends them on something else.
    """

    title: str
    scores: Mapping[str, float | None]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    experts: Mapping[str, float] | None = None
    matrices: Sequence[MatrixQuality] = ()
    spectra: Spectra | None = None
    notes: Sequence[str] = ()
    document: Mapping[str, Any] = field(default_factory=dict)
    score_name: str = "alpha"
    number_name: str = "experts"

    @property
    def blocks(self) -> list[str]:
        """The blocks' names, in the order of depth."""
        return list(self.scores or self.experts or {})

    @property
    def has_scores(self) -> bool:
        """Whether any block has a score."""
        return any(score is not None for score in self.scores.values())


def save_plot(picture: Picture, path: Path) -> None:
    """Draw into a file, whole or not at all.

    A ``.html`` page holds the figure, tables of blocks and matrices and the numbers as JSON, and
    loads nothing from anywhere. Directories on the way are made.

    Args:
        picture: What to draw.
        path: The file; its suffix is one of :data:`~axolotl_alphalora.plots.SUFFIXES`.

    Raises:
        ValueError: If the suffix is unknown.
        ImportError: If matplotlib is not installed.
        OSError: If the file cannot be written.
    """
    check_plot(path)
    from .figure import draw
    from .page import picture_page

    save_figure(draw(picture), path, lambda svg: picture_page(picture, svg))
