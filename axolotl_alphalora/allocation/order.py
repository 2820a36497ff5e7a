"""Controls for experiments: a strategy's own numbers, dealt to the units in another order."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from ..blocks import block_name, group_by_block, kind_of, stack_of
from .strategy import Problem


def deal(
    numbers: Mapping[str, int], scores: Mapping[str, float], problem: Problem
) -> dict[str, int]:
    """Deal numbers anew as the option `order` says.

    Numbers change places only among units that cost the same whatever their number, see
    `alike`, so that their histogram and what they cost stay.

    Args:
        numbers: Module name to the number that the strategy gives it.
        scores: Unit name to the strategy's score.
        problem: What was decided, with the option.

    Returns:
        Module name to number: with `opposite` the unit with the k-th largest number gets the k-th
        smallest, of equal ones the higher score less; with `shuffled` the units' numbers are
        permuted at random. The permutation depends on the seed and the units alone.

    Raises:
        ValueError: If there are no scores, or nothing else comes of it than the strategy's plan.
    """
    options = problem.options
    if options.order == "scores":
        return dict(numbers)
    if not scores:
        raise ValueError(
            f"order: {options.order} needs scores, and the strategy returned none: leave it out"
        )
    groups = alike(problem.shapes, problem.units)
    _check(options.order, groups, numbers, problem.units)
    dealt = dict(numbers)
    for place, units in enumerate(groups):
        hands = [[numbers[name] for name in problem.units[unit]] for unit in units]
        if options.order == "opposite":
            # By number first: EVA's, and those of other packages, need not follow their scores.
            held = {unit: sum(hand) for unit, hand in zip(units, hands, strict=True)}
            units = sorted(units, key=lambda unit: (-held[unit], -scores[unit]))
            hands.sort(key=lambda hand: (sum(hand), hand))
        else:
            random.Random(f"{options.order_seed} {place}").shuffle(hands)
        for unit, hand in zip(units, hands, strict=True):
            dealt.update(zip(problem.units[unit], hand, strict=True))
    if dealt == numbers:
        advice = (
            f"order_seed {options.order_seed} happens to deal them so: take another"
            if options.order == "shuffled"
            else "units of the same shapes have the same sum: leave it out"
        )
        raise ValueError(f"order: {options.order} gives the same plan as order: scores, {advice}")
    return dealt


def alike(
    shapes: Mapping[str, tuple[int, int]], units: Mapping[str, Sequence[str]]
) -> list[list[str]]:
    """Group units whose numbers can change places without changing what a plan costs.

    Args:
        shapes: Module name to output features and input features.
        units: Unit name to the names of its modules.

    Returns:
        Units, in order, of one stack of blocks whose modules have the same kinds and shapes, or the
        same shape where a unit is one module, in blocks of equally many modules.
    """
    sizes = {block: len(names) for block, names in group_by_block(shapes).items()}
    groups: dict[Any, list[str]] = {}
    for unit, names in units.items():
        block = block_name(names[0])
        inside = stack_of(names[0]) if block != names[0] else None
        kinds = [(kind_of(name) if len(names) > 1 else "", shapes[name]) for name in names]
        groups.setdefault((inside, sizes[block], tuple(kinds)), []).append(unit)
    return list(groups.values())


def _check(
    order: str,
    groups: Sequence[Sequence[str]],
    numbers: Mapping[str, int],
    units: Mapping[str, Sequence[str]],
) -> None:
    """Refuse what cannot be dealt otherwise."""

    def differ(group: Sequence[str]) -> bool:
        return len({tuple(numbers[name] for name in units[unit]) for unit in group}) > 1

    uneven = [group for group in groups if differ(group)]
    if not uneven:
        if len(units) == 1:
            why = f"there is one unit, {next(iter(units))!r}"
        elif len(set(numbers.values())) == 1:
            why = f"every module gets {next(iter(numbers.values()))}"
        else:
            why = (
                "numbers are dealt among units of the same stack and shapes only, and all of these "
                "get the same"
            )
        raise ValueError(f"order: {order} has nothing to deal, since {why}: leave it out")
