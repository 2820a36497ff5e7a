"""Splitting a whole number in proportion to weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

__all__ = ["largest_remainder"]


def largest_remainder(
    weights: Sequence[float], total: int, minimum: int = 1, maximum: int | None = None
) -> list[int]:
    """Split a total into whole shares in proportion to weights, within bounds.

    The real-valued shares are ``c * weight`` clamped to the bounds, with the one ``c`` that makes
    them sum to the total. Their whole parts are handed out first; what is left goes, one each, to
    the largest fractional parts. The arithmetic is exact, so that equal weights tie exactly.

    The result is monotone: a larger weight never gets less than a smaller one. Of equal weights
    the earlier one gets more where they cannot get the same.

    Args:
        weights: Finite weights, none negative and not all zero.
        total: What the shares sum to.
        minimum: Smallest share, at least 0.
        maximum: Largest share; None for no bound.

    Returns:
        The shares, in the order of the weights.

    Raises:
        ValueError: If the weights are unusable, or if no shares within the bounds sum to the
            total; the message says which totals are possible.
    """
    _check_weights(weights)
    _check_budget(len(weights), total, minimum, maximum)
    highest = total if maximum is None else maximum
    shares = _bounded_shares([Fraction(weight) for weight in weights], total, minimum, highest)
    counts = [math.floor(share) for share in shares]
    order = sorted(range(len(counts)), key=lambda i: shares[i] - counts[i], reverse=True)
    for position in order[: total - sum(counts)]:
        counts[position] += 1
    return counts


def _check_weights(weights: Sequence[float]) -> None:
    if not weights:
        raise ValueError("there are no blocks to share experts between")
    for position, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(
                f"weight {position} is {weight}: weights must be finite and not negative"
            )
    if not any(weights):
        raise ValueError("all weights are zero: at least one must be positive")


def _check_budget(blocks: int, total: int, minimum: int, maximum: int | None) -> None:
    if minimum < 0:
        raise ValueError(f"minimum is {minimum}: it must not be negative")
    if maximum is not None and maximum < minimum:
        raise ValueError(f"maximum {maximum} is smaller than minimum {minimum}")
    lowest = blocks * minimum
    if maximum is None:
        if total < lowest:
            raise ValueError(
                f"total must be at least {lowest} for {blocks} blocks with minimum {minimum}, "
                f"not {total}"
            )
    elif not lowest <= total <= blocks * maximum:
        raise ValueError(
            f"total must lie between {lowest} and {blocks * maximum} for {blocks} blocks with "
            f"minimum {minimum} and maximum {maximum}, not {total}"
        )


def _bounded_shares(
    weights: list[Fraction], total: int, lowest: int, highest: int
) -> list[Fraction]:
    """Return the real shares ``min(max(c * weight, lowest), highest)`` that sum to the total.

    Shares that break a bound are fixed at it and the rest is split anew. Only the side that breaks
    its bound by more is fixed in a round: the other side's may fit once the rest has changed.
    """
    shares = [Fraction(0)] * len(weights)
    free = list(range(len(weights)))
    left = Fraction(total)
    while True:
        scale = sum(weights[i] for i in free)
        for i in free:
            shares[i] = left * weights[i] / scale if scale else left / len(free)
        below = [i for i in free if shares[i] < lowest]
        above = [i for i in free if shares[i] > highest]
        balance = sum(shares[i] - highest for i in above) + sum(shares[i] - lowest for i in below)
        for i in above if balance >= 0 else ():
            shares[i] = Fraction(highest)
        for i in below if balance <= 0 else ():
            shares[i] = Fraction(lowest)
        if balance == 0:
            return shares
        fixed = above if balance > 0 else below
        left -= sum(shares[i] for i in fixed)
        free = sorted(set(free).difference(fixed))
