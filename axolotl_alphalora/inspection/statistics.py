"""The arithmetic of updates that are known by their factors; no out x in matrix is formed.

Notation as in :mod:`axolotl_alphalora.adapter.functional`: N experts of rank r stacked, ``A`` is
[N*r, in] and ``B`` is [out, N*r]; expert e's update is ``dW_e = s * B_e A_e``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["cosines", "effective_rank", "singular_values"]


def singular_values(a: Tensor, b: Tensor, experts: int, scaling: float) -> Tensor:
    """Return the singular values of every expert's update, the largest first.

    With ``A_e^T = Q R_A`` and ``B_e = P R_B`` they are those of ``R_B R_A^T``.

    Args:
        a: [N*r, in], fp32.
        b: [out, N*r], fp32.
        experts: N.
        scaling: s.

    Returns:
        [N, min(r, in, out)], fp32.
    """
    down = torch.linalg.qr(a.unflatten(0, (experts, -1)).mT, mode="r").R  # [N, r or in, r]
    stacked = b.unflatten(1, (experts, -1)).permute(1, 0, 2)  # [N, out, r]
    up = torch.linalg.qr(stacked, mode="r").R
    return torch.linalg.svdvals(up @ down.mT) * scaling


def cosines(a: Tensor, b: Tensor, experts: int) -> Tensor:
    """Return the cosines between the updates of all pairs of experts, as vectors of entries.

    The inner product of two updates is the sum of an r x r block of ``(B^T B) * (A A^T)``.

    Args:
        a: [N*r, in], fp32.
        b: [out, N*r], fp32.
        experts: N.

    Returns:
        [N, N], fp32; NaN in the rows and columns of experts whose update is zero.
    """
    products = (b.T @ b) * (a @ a.T)  # [N*r, N*r]
    inner = products.unflatten(0, (experts, -1)).unflatten(2, (experts, -1)).sum((1, 3))
    lengths = inner.diagonal().clamp_min(0).sqrt()
    cosine = inner / (lengths.unsqueeze(0) * lengths.unsqueeze(1))
    cosine = cosine.clamp(-1, 1)
    known = lengths > 0
    return torch.where(known.unsqueeze(0) & known.unsqueeze(1), cosine, math.nan)


def effective_rank(values: Sequence[float]) -> float:
    """Return the effective rank (Roy and Vetterli 2007): exp of the entropy of the normalised
    singular values.

    Args:
        values: Singular values.

    Returns:
        Between 1 and the number of values that are not zero; 0 if all are.
    """
    total = math.fsum(values)
    if total == 0:
        return 0.0
    shares = [value / total for value in values]
    return math.exp(-math.fsum(share * math.log(share) for share in shares if share > 0))
