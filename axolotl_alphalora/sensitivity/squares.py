"""The squared norm of a linear layer's weight gradient, from what goes in and what comes back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ELEMENTS = 2**23


def squared_gradient_norm(x: Tensor, gradient: Tensor) -> Tensor:
    """``||dL/dW||_F^2`` of ``y = x W^T``, without a buffer that grows with T or with W.

    dL/dW is ``g^T x`` for an input ``x`` and the gradient ``g`` of the output, over T tokens. Its
    squared norm is also ``sum((x x^T) * (g g^T))``: where T is small against the layer's sides,
    these two T x T matrices cost fewer operations. Either is computed in pieces whose every matrix
    has at most 32 MiB, or is one row. Products and sums are in float32 (on CUDA with TF32 where
    the process allows it, which is exact for half-precision activations).

    Args:
        x: ``[..., in]``, floating point.
        gradient: ``[..., out]``, floating point, with the leading sizes of ``x``.

    Returns:
        A float32 scalar on the same device.
    """
    x = x.detach().reshape(-1, x.shape[-1])
    gradient = gradient.detach().reshape(-1, gradient.shape[-1])
    tokens, (wide, tall) = x.shape[0], (x.shape[1], gradient.shape[1])
    rows = min(_rows(max(wide, tall)), math.isqrt(_ELEMENTS))
    with torch.autocast(x.device.type, enabled=False):
        if (tokens + min(tokens, rows)) * (wide + tall) < 2 * wide * tall:
            return _from_grams(x, gradient, rows)
        return _from_product(x, gradient)


def _rows(columns: int) -> int:
    return max(1, _ELEMENTS // columns)


def _from_grams(x: Tensor, gradient: Tensor, rows: int) -> Tensor:
    """Sum over tiles on and under the diagonal; both Gram matrices are symmetric."""
    total = torch.zeros((), device=x.device)
    for start in range(0, len(x), rows):
        left, above = x[start : start + rows].float(), gradient[start : start + rows].float()
        for other in range(0, start + 1, rows):
            inputs = left @ x[other : other + rows].float().T
            outputs = above @ gradient[other : other + rows].float().T
            total += inputs.mul_(outputs).sum() * (1 if other == start else 2)
    # A sum of signed products may round below zero; the norm does not.
    return total.clamp_(min=0)


def _from_product(x: Tensor, gradient: Tensor) -> Tensor:
    """Sum over rows of dL/dW, each gathered over pieces of the tokens."""
    total = torch.zeros((), device=x.device)
    tall = min(_rows(x.shape[1]), gradient.shape[1])
    tokens = _rows(max(x.shape[1], tall))
    for start in range(0, gradient.shape[1], tall):
        columns = gradient[:, start : start + tall]
        product = torch.zeros(columns.shape[1], x.shape[1], device=x.device)
        for first in range(0, len(x), tokens):
            piece = slice(first, first + tokens)
            product.addmm_(columns[piece].float().T, x[piece].float())
        total += product.square_().sum()
    return total
