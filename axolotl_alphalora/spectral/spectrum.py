"""Eigenvalue spectra of weight matrices.

The eigenvalues are the squared singular values of a matrix, unscaled and uncentred. They are
taken from the smaller Gram matrix in float64, which on the matrices of a language model gives
the same exponents as a singular value decomposition at a fraction of its cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

__all__ = ["round_off", "significant", "spectrum"]

_ONE_THREAD_UP_TO = 1024


def spectrum(weight: Tensor) -> Tensor:
    """Return the squared singular values of a weight matrix.

    Args:
        weight: The matrix, 2-D, of any floating dtype, on the device where the work is to be done.

    Returns:
        Squared singular values in ascending order, float64, shape ``(min(weight.shape),)``, on the
        weight's device. Values below zero, which only round-off gives, are zero.

    Raises:
        ValueError: If the weight is not a non-empty floating-point matrix or holds NaN or
            infinity.
    """
    if weight.ndim != 2 or weight.numel() == 0 or not weight.is_floating_point():
        raise ValueError(
            "a spectrum needs a non-empty floating-point matrix, "
            f"not a {weight.dtype} tensor of shape {tuple(weight.shape)}"
        )
    # One reduction sees every NaN and infinity without a mask as large as the weight.
    if not torch.isfinite(torch.stack(weight.detach().aminmax())).all():
        bad = int((~weight.isfinite()).sum())
        raise ValueError(f"{bad} of {weight.numel()} entries are NaN or infinite")
    matrix = weight.detach().to(torch.float64)
    # On small matrices threads cost more in waiting for each other than they win: the 210
    # matrices of a 576-wide model take 5 s on one of two busy cores and 23 s on both.
    alone = matrix.device.type == "cpu" and min(matrix.shape) <= _ONE_THREAD_UP_TO
    with _one_thread() if alone else nullcontext():
        gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
        return torch.linalg.eigvalsh(gram).clamp_(min=0)


def round_off(shape: tuple[int, int]) -> float:
    """Return the share of the largest eigenvalue below which an eigenvalue is round-off.

    A float64 Gram matrix and its eigenvalues carry absolute errors of a few machine epsilons of
    the largest eigenvalue. The threshold is ``max(shape)`` epsilons, the usual convention for
    numerical rank, applied to eigenvalues: 3.4e-13 for a 1536 x 576 matrix, a ratio of singular
    values of 5.8e-7.

    Args:
        shape: Shape of the weight matrix.
    """
    return max(shape) * torch.finfo(torch.float64).eps


def significant(eigenvalues: Tensor, shape: tuple[int, int]) -> Tensor:
    """Drop the zero and round-off eigenvalues of a spectrum.

    Args:
        eigenvalues: A spectrum as :func:`spectrum` returns it.
        shape: Shape of the weight matrix it belongs to.

    Returns:
        The eigenvalues above :func:`round_off` times the largest, in the order given. Their number
        is the numerical rank of the matrix: 0 for a matrix of zeros.
    """
    return eigenvalues[eigenvalues > eigenvalues.max() * round_off(shape)]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch's CPU operators on one thread inside the context."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
