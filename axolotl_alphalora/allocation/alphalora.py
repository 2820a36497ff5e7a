"""AlphaLoRA's allocation: experts in proportion to a power of the block's score."""

from __future__ import annotations

import math
from collections.abc import Mapping

from axolotl_alphalora.allocation.rounding import largest_remainder

__all__ = ["allocate"]


def allocate(
    scores: Mapping[str, float],
    *,
    total: int,
    beta: float = 2.5,
    minimum: int = 1,
    maximum: int | None = None,
) -> dict[str, int]:
    r"""Share experts between blocks by their scores.

    Block :math:`l` gets :math:`n_l = T \cdot s_l / \sum_k s_k` experts with
    :math:`s_l = \bar\alpha_l^\beta` (AlphaLoRA, arXiv 2410.10054, section 3), rounded by largest
    remainder within the bounds. Where two blocks tie, the earlier one gets more.

    Args:
        scores: Block name to the mean alpha of its matrices, in the order of the blocks.
        total: Experts to share, the :math:`T` above.
        beta: How strongly scores tell blocks apart; 0 shares evenly.
        minimum: Fewest experts of a block.
        maximum: Most experts of a block; None for no bound.

    Returns:
        Block name to number of experts, in the order of ``scores``.

    Raises:
        ValueError: If ``beta`` is negative or not finite, a score is not positive and finite, or
            the total cannot be met within the bounds.
    """
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta is {beta}: it must be a finite number, 0 or larger")
    for block, score in scores.items():
        if not (math.isfinite(score) and score > 0):
            raise ValueError(
                f"the score of block {block!r} is {score}: it must be a positive number"
            )
    # Relative to the largest: the power cannot overflow.
    largest = max(scores.values(), default=1.0)
    weights = [(score / largest) ** beta for score in scores.values()]
    counts = largest_remainder(weights, total, minimum, maximum)
    return dict(zip(scores, counts, strict=True))
