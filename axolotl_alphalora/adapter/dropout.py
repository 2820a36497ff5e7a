"""Which elements a dropout keeps, drawn cheaply and kept in one byte each."""

from __future__ import annotations

import torch

__all__ = ["keep_mask", "kept_share"]

_LEVELS = 1 << 16


def kept_share(p: float) -> float:
    """Share of the elements that `keep_mask` keeps: 1 - p, to the nearest 1/65536."""
    return (_LEVELS - _dropped(p)) / _LEVELS


def keep_mask(x: torch.Tensor, p: float) -> torch.Tensor:
    """Draw which elements survive, from the default generator of the tensor's device.

    On a CPU, four elements share a random word of 64 bits: `torch.nn.functional.dropout` draws one
    for each, which is most of its time.

    Args:
        x: Tensor whose shape and device to use.
        p: Probability to drop an element, in [0, 1).

    Returns:
        uint8 in the shape of ``x``: 1 to keep, 0 to drop. A product with it takes half the time of
        one with a boolean.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.empty_like(x, dtype=torch.uint8).bernoulli_(kept_share(p))
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64)
    words.random_(-(1 << 63), None)
    levels = words.view(torch.int16)[: x.numel()].view(x.shape)
    return (levels >= _dropped(p) - _LEVELS // 2).view(torch.uint8)


def _dropped(p: float) -> int:
    return min(round(p * _LEVELS), _LEVELS - 1)
