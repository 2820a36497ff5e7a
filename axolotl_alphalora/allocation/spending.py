"""Spending a budget in proportion to weights: whole numbers that keep bounds and order."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from fractions import Fraction

Cost = Callable[[int], int]


def largest_remainder(
    weights: Sequence[float], total: int, minimum: int = 1, maximum: int | None = None
) -> list[int]:
    """Split a total into whole shares in proportion to weights, within bounds.

    The real-valued shares are `c * weight` clamped to the bounds, with the one `c` that makes
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
    _check_total(len(weights), total, minimum, maximum)
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


def _check_total(blocks: int, total: int, minimum: int, maximum: int | None) -> None:
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
    """Return the real shares `min(max(c * weight, lowest), highest)` that sum to the total.

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


def spend(
    weights: Sequence[float],
    costs: Sequence[Cost],
    limit: int,
    minimum: int = 1,
    maximum: int | None = None,
) -> list[int]:
    """Share experts in proportion to weights, as many as a limit on their cost allows.

    The shares are those of `largest_remainder`, over
    a total number of experts that the limit pays for while one more would exceed it. What is left
    of the limit then buys single experts, for the units furthest below their proportional share
    first. Finally experts move from a unit to one where they cost more, by the largest amount that
    the limit still pays for, until no such exchange is left.

    The result keeps the bounds and the order of the weights: a larger weight never gets fewer than
    a smaller one, and equal weights differ by at most one. Its cost is at most the limit. No
    expert more, and no exchange of one expert for a dearer one, would keep all three. It need not
    be the closest to the limit of all that do: finding that is a knapsack problem.

    Where all units have the same linear cost, the result is that of `largest_remainder` with
    `limit // cost` experts. A unit of weight zero gets the minimum as long as any other is below
    the maximum. Where the limit pays for the maximum everywhere, that is the result.

    Args:
        weights: Finite weight of each unit, none negative and not all zero.
        costs: For each unit, a function from its number of experts to its cost: whole numbers that
            never fall as the number grows, and rise by at least 1 an expert in the long run.
        limit: What may be spent in all.
        minimum: Fewest experts of a unit, at least 0.
        maximum: Most experts of a unit; None for no bound.

    Returns:
        Number of experts of each unit, in the order of the weights.

    Raises:
        ValueError: If the weights or bounds are unusable, the minimum everywhere costs more than
            the limit, or costs do not rise.
    """
    if len(costs) != len(weights):
        raise ValueError(f"there are {len(weights)} weights but {len(costs)} costs")
    counts = largest_remainder(weights, len(weights) * minimum, minimum, maximum)
    lowest = _total(costs, counts)
    if lowest > limit:
        raise ValueError(
            f"{minimum} for each of {len(weights)} units costs {lowest}, which is more than the "
            f"limit of {limit}: raise the limit or lower the minimum"
        )
    # Units of weight zero only share what is left once all others are at the maximum.
    weighted = [i for i, weight in enumerate(weights) if weight > 0]
    for chosen in (weighted, [i for i in range(len(weights)) if weights[i] == 0]):
        if not chosen:
            break
        shares = _Shares(
            [weights[i] or 1.0 for i in chosen],
            [costs[i] for i in chosen],
            limit - _total(costs, counts) + sum(costs[i](minimum) for i in chosen),
            minimum,
            maximum,
        )
        for i, count in zip(chosen, shares.spend(), strict=True):
            counts[i] = count
        if maximum is None or any(counts[i] < maximum for i in chosen):
            break
    return counts


def _total(costs: Sequence[Cost], counts: Sequence[int]) -> int:
    return sum(cost(count) for cost, count in zip(costs, counts, strict=True))


class _Shares:
    """Shares of units with positive weights while they are being settled.

    Units of one weight form a class. The order holds if the counts of a class differ by at most
    one and none is above any of the next class, so the lowest and highest count of each class
    tell which unit may change.
    """

    def __init__(
        self,
        weights: Sequence[float],
        costs: Sequence[Cost],
        limit: int,
        minimum: int,
        maximum: int | None,
    ) -> None:
        self._weights = weights
        self._costs = costs
        self._limit = limit
        self._minimum = minimum
        self._maximum = maximum
        distinct = {weight: rank for rank, weight in enumerate(sorted(set(weights)))}
        self._class = [distinct[weight] for weight in weights]
        self._members: list[list[int]] = [[] for _ in distinct]
        for i, rank in enumerate(self._class):
            self._members[rank].append(i)

    def spend(self) -> list[int]:
        """Return the settled counts."""
        self._counts = self._proportional()
        self._left = self._limit - _total(self._costs, self._counts)
        self._low = [0] * len(self._members)
        self._high = [0] * len(self._members)
        for rank in range(len(self._members)):
            self._measure(rank)
        while self._add() or self._exchange():
            pass
        return self._counts

    def _proportional(self) -> list[int]:
        """Return the largest remainder shares of a total that the limit just pays for."""
        units = len(self._weights)
        if self._maximum is not None:
            full = [self._maximum] * units
            if _total(self._costs, full) <= self._limit:
                return full
        lowest = paid = units * self._minimum
        counts = [self._minimum] * units
        step, over = units, None
        while over is None or over - paid > 1:
            total = paid + step if over is None else (paid + over) // 2
            if self._maximum is not None:
                total = min(total, units * self._maximum)
            trial = largest_remainder(self._weights, total, self._minimum, self._maximum)
            if _total(self._costs, trial) > self._limit:
                over = total
                continue
            if total - lowest > self._limit:
                raise ValueError(
                    f"{total} experts cost no more than the limit of {self._limit}: costs must "
                    "rise by at least 1 an expert, or there must be a maximum"
                )
            paid, counts, step = total, trial, 2 * step
        return counts

    def _add(self) -> bool:
        """Give one expert to the unit with the best claim to it, if any can have one."""
        affordable = [i for i in self._raisable() if self._rise(i) <= self._left]
        if not affordable:
            return False
        self._change(max(affordable, key=lambda i: (self._claim(i), -i)), 1)
        return True

    def _exchange(self) -> bool:
        """Move one expert to where it costs more, by as much as is left, if any can be moved."""
        # The cheapest first, and of equal ones that of the unit with the least claim to it.
        lowerable = sorted(
            (self._rise(j, -1), self._claim(j, -1), -j)
            for j in range(len(self._counts))
            if self._may_fall(j)
        )
        best: tuple[int, float, float, int, int] | None = None
        for i in self._raisable():
            rise = self._rise(i)
            for fall, claim, position in lowerable[bisect_left(lowerable, (rise - self._left,)) :]:
                gain = rise - fall
                if gain <= 0 or (best and gain < best[0]):
                    break
                if self._compatible(i, -position):
                    exchange = (gain, self._claim(i), -claim, -i, -position)
                    best = max(best, exchange) if best else exchange
                    break
        if best is None:
            return False
        self._change(-best[3], 1)
        self._change(best[4], -1)
        return True

    def _raisable(self) -> list[int]:
        """Return the units that one expert more leaves within the bound and the order."""
        last = len(self._members) - 1
        return [
            i
            for rank, low in enumerate(self._low)
            if (self._maximum is None or low < self._maximum)
            and (rank == last or low < self._low[rank + 1])
            for i in self._members[rank]
            if self._counts[i] == low
        ]

    def _may_fall(self, unit: int) -> bool:
        """Return whether one expert fewer leaves the unit within the bound and the order."""
        count, rank = self._counts[unit], self._class[unit]
        below = self._minimum if rank == 0 else self._high[rank - 1]
        return count == self._high[rank] and count > below

    def _compatible(self, raised: int, lowered: int) -> bool:
        """Return whether two changes that keep the order one by one keep it together."""
        distance = self._class[lowered] - self._class[raised]
        if distance not in (0, 1):
            return True
        return self._counts[raised] + 1 <= self._counts[lowered] - 1 + (distance == 0)

    def _claim(self, unit: int, change: int = 1) -> float:
        """Return the unit's claim (Webster's) to the expert that the change adds or takes."""
        return self._weights[unit] / (2 * self._counts[unit] + change)

    def _rise(self, unit: int, change: int = 1) -> int:
        """Return the cost of the expert that the change adds or takes."""
        cost, count = self._costs[unit], self._counts[unit]
        return abs(cost(count + change) - cost(count))

    def _change(self, unit: int, change: int) -> None:
        self._left -= change * self._rise(unit, change)
        self._counts[unit] += change
        self._measure(self._class[unit])

    def _measure(self, rank: int) -> None:
        counts = [self._counts[i] for i in self._members[rank]]
        self._low[rank], self._high[rank] = min(counts), max(counts)
