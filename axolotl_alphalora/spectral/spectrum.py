"""Eigenvalue spectra of weight matrices, whole or window by window.

The eigenvalues are the squared singular values of a matrix, unscaled and uncentred. They are
taken from the smaller Gram matrix in float64, which on the matrices of a language model gives
the same exponents as a singular value decomposition at a fraction of its cost. The weight is
converted to float64 slice by slice, never as a whole.

How heavy-tailed a spectrum looks depends on the matrix's shape. Fixed-aspect-ratio matrix
subsampling (FARMS, arXiv 2506.06280) therefore slides windows of one shape over every matrix and
pools their eigenvalues. Its authors set the window's rows, its aspect ratio and the number of
positions per side as options of an experiment; here a window is given whole, and the positions
follow from it: the fewest that cover every entry.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..blocks import Shapes


def window_grid(shape: tuple[int, int], window: tuple[int, int]) -> list[tuple[int, int]]:
    """Place windows on an even grid that covers a matrix.

    Each side takes `ceil(size / window)` positions, the fewest that cover it, spread evenly from
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


def default_window(shapes: Shapes, least: int = 1) -> tuple[int, int]:
    """Return the largest square window that fits into all matrices.

    Args:
        shapes: Name of a matrix to its shape.
        least: A side below this is refused, unless no matrix has a longer one.

    Raises:
        ValueError: If there are none, or the smallest leaves a window that is too small.
    """
    sides = {name: min(shape) for name, shape in shapes.items()}
    side = min(sides.values(), default=0)
    if side < 1:
        raise ValueError("a window needs at least one non-empty matrix to fit into")
    if side < least <= max(sides.values()):
        smallest = min(sides, key=sides.__getitem__)
        raise ValueError(
            f"window: auto is the largest square that fits into all matrices, and {smallest} "
            f"leaves one of {side} x {side}, in which there is no tail to fit: leave such layers "
            "out of the targets (lora_exclude_modules), or measure whole matrices (window: null)"
        )
    return side, side


def _offsets(size: int, window: int) -> list[int]:
    count = math.ceil(size / window)
    room = size - window
    return [round(position * room / max(1, count - 1)) for position in range(count)]


_SLICE_ELEMENTS = 1 << 22
"""Most float64 elements (32 MiB) of one converted slice."""

_GRAM_BLOCKS = 4


def spectrum(weight: Tensor) -> Tensor:
    """Return the squared singular values of a weight matrix.

    Beyond the weight itself this takes two float64 matrices of the shorter side squared (the Gram
    matrix and the copy that its decomposition works on) and one slice of at most 32 MiB.

    Args:
        weight: The matrix, 2-D, of any floating dtype, on the device where the work is to be done.

    Returns:
        Squared singular values in ascending order, float64, shape `(min(weight.shape),)`, on the
        weight's device. Values below zero, which only round-off gives, are zero.

    Raises:
        ValueError: If the weight is not a non-empty floating-point matrix or holds NaN or
            infinity.
    """
    _check(weight, dimensions=2)
    return torch.linalg.eigvalsh(_gram(weight.detach())).clamp_(min=0)


def spectra(weight: Tensor, window: tuple[int, int] | None = None) -> Tensor:
    """Return the squared singular values of a weight matrix's windows.

    Args:
        weight: The matrix, as for `spectrum`.
        window: Rows and columns of the windows, in the weight's own orientation, placed by
            `window_grid`; None takes the whole matrix as
            its only window.

    Returns:
        One spectrum a row in ascending order, float64, shape `(W, n)` with n the shorter side of
        the window, on the weight's device.

    Raises:
        ValueError: As `spectrum` does, and if the window does not fit into the matrix.
    """
    if window is None:
        return spectrum(weight)[None]
    _check(weight, dimensions=2)
    rows, columns = window
    places = window_grid((weight.shape[0], weight.shape[1]), window)
    together = max(1, _SLICE_ELEMENTS // (rows * columns))
    parts = []
    for first in range(0, len(places), together):
        windows = [
            weight.detach()[row : row + rows, column : column + columns]
            for row, column in places[first : first + together]
        ]
        if len(windows) > 1:
            parts.append(_stack_eigenvalues(torch.stack(windows)))
        else:
            parts.append(torch.linalg.eigvalsh(_gram(windows[0])).clamp_(min=0)[None])
    return torch.cat(parts)


def stacked_spectra(weights: Tensor) -> Tensor:
    """Return the squared singular values of several matrices of one shape.

    On an accelerator one call for many small matrices saves most of the time that they would spend
    in waiting for each other. The whole stack is converted to float64.

    Args:
        weights: The matrices, shape `(B, rows, columns)`, of any floating dtype.

    Returns:
        One spectrum a row in ascending order, float64, shape `(B, min(rows, columns))`, on the
        weights' device.

    Raises:
        ValueError: If the stack is not a non-empty 3-D floating-point tensor or holds NaN or
            infinity.
    """
    _check(weights, dimensions=3)
    return _stack_eigenvalues(weights.detach())


def round_off(shape: tuple[int, int]) -> float:
    """Return the share of the largest eigenvalue below which an eigenvalue is round-off.

    A float64 Gram matrix and its eigenvalues carry absolute errors of a few machine epsilons of
    the largest eigenvalue. The threshold is `max(shape)` epsilons, the usual convention for
    numerical rank, applied to eigenvalues: 3.4e-13 for a 1536 x 576 matrix, a ratio of singular
    values of 5.8e-7.
    """
    return max(shape) * torch.finfo(torch.float64).eps


def pool(spectra: Tensor, window: tuple[int, int]) -> Tensor:
    """Put the significant eigenvalues of several windows together.

    Args:
        spectra: One spectrum a row as `spectra` returns them, shape (W, n).
        window: Shape of a window (of the matrix where it is its only window).

    Returns:
        The eigenvalues above `round_off` times the largest of their own window, window after
        window, 1-D. Of a single window their number is its numerical rank: 0 for zeros.
    """
    return spectra[spectra > spectra.amax(dim=1, keepdim=True) * round_off(window)]


def _check(weight: Tensor, dimensions: int) -> None:
    if weight.ndim != dimensions or weight.numel() == 0 or not weight.is_floating_point():
        what = "matrix" if dimensions == 2 else "stack of matrices"
        raise ValueError(
            f"a spectrum needs a non-empty floating-point {what}, "
            f"not a {weight.dtype} tensor of shape {tuple(weight.shape)}"
        )
    # One reduction sees every NaN and infinity without a mask as large as the weight.
    if not torch.isfinite(torch.stack(weight.detach().aminmax())).all():
        bad = int((~weight.isfinite()).sum())
        raise ValueError(f"{bad} of {weight.numel()} entries are NaN or infinite")


def _gram(weight: Tensor) -> Tensor:
    """Return the smaller Gram matrix in float64; only its lower triangle is filled."""
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.T
    size = tall.shape[1]
    gram = torch.zeros(size, size, dtype=torch.float64, device=weight.device)
    block = -(-size // _GRAM_BLOCKS)
    for part in tall.split(max(1, _SLICE_ELEMENTS // size)):
        part = part.to(torch.float64)
        # The upper triangle is never read: leaving it out saves three eighths of the work.
        for low in range(0, size, block):
            gram[low:, low : low + block].addmm_(part[:, low:].T, part[:, low : low + block])
    return gram


def _stack_eigenvalues(stack: Tensor) -> Tensor:
    """Return the ascending squared singular values of each matrix, shape (B, n)."""
    stack = stack.to(torch.float64)
    tall = stack if stack.shape[1] >= stack.shape[2] else stack.mT
    return torch.linalg.eigvalsh(tall.mT @ tall).clamp_(min=0)
