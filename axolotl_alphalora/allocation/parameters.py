"""How many parameters a mixture of LoRA experts trains."""

from __future__ import annotations

__all__ = ["expert_parameters"]


def expert_parameters(in_features: int, out_features: int, experts: int, rank: int) -> int:
    """Return the trainable parameters of one adapted linear layer.

    Every expert has a matrix of ``rank x in_features`` and one of ``out_features x rank``. Two or
    more experts also need a router of ``experts x in_features``, without a bias.

    Args:
        in_features: Input features of the linear layer.
        out_features: Its output features.
        experts: Number of experts; 0 for a layer that is left alone.
        rank: Rank of every expert.
    """
    router = experts * in_features if experts > 1 else 0
    return experts * rank * (in_features + out_features) + router
