"""Which elements a dropout keeps, drawn cheaply and kept in one byte each."""

from __future__ import annotations

import torch

__all__ = ["apply_factors", "keep_factors", "keep_mask"]


def keep_mask(x: torch.Tensor, p: float) -> torch.Tensor:
    """Draw which elements survive, from the default generator of the tensor's device.

    On a CPU, eight elements share a random word of 64 bits: `torch.nn.functional.dropout` draws one
    for each, which is most of its time. A byte is compared with one of the two whole numbers next
    to ``256 p``, drawn for each row so that every element is dropped with probability p. Elements
    of a row share that number, and so are not quite independent: their covariance is 1 / 512^2 at
    most.

    Args:
        x: [T, in], whose shape and device to use.
        p: Probability to drop an element, in [0, 1).

    Returns:
        uint8 [T, in]: 1 to keep, 0 to drop.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or p > 254 / 256:
        return torch.empty_like(x, dtype=torch.uint8).bernoulli_(1.0 - p)
    words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device)
    words.random_(-(1 << 63), None)
    levels = words.view(torch.uint8)[: x.numel()].view(x.shape)
    dropped = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
    return levels.ge_(dropped.uniform_(256 * p, 256 * p + 1).to(torch.uint8))


def keep_factors(keep: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask as something to multiply with: on a CPU, each product of two dtypes casts anew."""
    return keep.to(dtype) if keep.device.type == "cpu" else keep


def apply_factors(tokens: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Zero what is dropped.

    Args:
        tokens: [T, in].
        factors: [T, in], from `keep_factors`; of the tokens' dtype, they are overwritten.
    """
    return factors.mul_(tokens) if factors.dtype == tokens.dtype else tokens * factors
