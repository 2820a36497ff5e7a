"""The tensors of a mixture of LoRA experts, and how many parameters they hold."""

from __future__ import annotations

__all__ = ["expert_parameters", "expert_tensors"]


def expert_tensors(
    in_features: int, out_features: int, experts: int, rank: int
) -> tuple[tuple[int, int], ...]:
    """Return the shapes of the tensors that one adapted linear layer trains.

    The experts are stored stacked: A is ``[experts * rank, in_features]`` and B
    ``[out_features, experts * rank]``. Two or more experts also need a router of
    ``[experts, in_features]``, without a bias.

    Args:
        in_features: Input features of the linear layer.
        out_features: Its output features.
        experts: Number of experts; 0 for a layer that is left alone.
        rank: Rank of every expert.
    """
    if experts == 0:
        return ()
    stacked = ((experts * rank, in_features), (out_features, experts * rank))
    return (*stacked, (experts, in_features)) if experts > 1 else stacked


def expert_parameters(in_features: int, out_features: int, experts: int, rank: int) -> int:
    """Return the trainable parameters of one adapted linear layer.

    Args:
        in_features: Input features of the linear layer.
        out_features: Its output features.
        experts: Number of experts; 0 for a layer that is left alone.
        rank: Rank of every expert.
    """
    shapes = expert_tensors(in_features, out_features, experts, rank)
    return sum(rows * columns for rows, columns in shapes)
