"""Windows of one shape over a weight matrix, against the bias of its aspect ratio.

How heavy-tailed a spectrum looks depends on the matrix's shape. Fixed-aspect-ratio matrix
subsampling (FARMS, arXiv 2506.06280) therefore slides windows of one shape over every matrix and
pools their eigenvalues. Its authors set the window's rows, its aspect ratio and the number of
positions per side as options of an experiment; here a window is given whole, and the positions
follow from it: the fewest that cover every entry.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["default_window", "window_grid"]


def window_grid(shape: tuple[int, int], window: tuple[int, int]) -> list[tuple[int, int]]:
    """Place windows on an even grid that covers a matrix.

    Each side takes ``ceil(size / window)`` positions, the fewest that cover it, spread evenly from
    edge to edge; neighbours overlap where the window does not divide the side.

    Args:
        shape: Rows and columns of the matrix, as it is stored.
        window: Rows and columns of a window, in the same orientation.

    Returns:
        The first row and the first column of each window, by rows. No offset occurs twice.

    Raises:
        ValueError: If the window has an empty side or one longer than the matrix's.
    """
    if min(window) < 1 or window[0] > shape[0] or window[1] > shape[1]:
        raise ValueError(
            f"a {window[0]} x {window[1]} window does not fit into a {shape[0]} x {shape[1]} matrix"
        )
    rows, columns = (_offsets(size, side) for size, side in zip(shape, window, strict=True))
    return [(row, column) for row in rows for column in columns]


def default_window(shapes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Return the largest square window that fits into all matrices.

    Args:
        shapes: Shapes of the matrices.

    Raises:
        ValueError: If there are none.
    """
    side = min((min(shape) for shape in shapes), default=0)
    if side < 1:
        raise ValueError("a window needs at least one non-empty matrix to fit into")
    return side, side


def _offsets(size: int, window: int) -> list[int]:
    count = math.ceil(size / window)
    room = size - window
    return [round(position * room / max(1, count - 1)) for position in range(count)]
