"""What a mixture looks like in one layer: its experts, their ranks, its router, its tensors.

A plan and a config count experts before they are cut. Knows nothing of torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Mixture:
    """The shape of the mixtures of a model, whatever the number of experts of a layer.

    Attributes:
        top_k: Experts per token: a whole number, or a number in (0, 1), which is a share of a
            layer's experts.
        segments: Parts that every expert is cut into (fine-grained segmentation, DeepSeekMoE,
            arXiv 2401.06066, section 3.1). A layer of N experts of rank r has `segments * N` of
            rank `r / segments`, and as many times more are active.
        router_rank: Rank R of a router `V U`, with U [R, in] and V [experts, R]; None for a full
            one of [experts, in].
        share_a: Whether the experts of a layer share one A of rank r (HydraLoRA,
            arXiv 2404.19245); segment j of every expert reads the j-th part of it.

    Raises:
        TypeError: If a value is of another type; names it.
        ValueError: If a value is out of range; names it.
    """

    top_k: int | float = 2
    segments: int = 1
    router_rank: int | None = None
    share_a: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if isinstance(self.top_k, float):
            if not 0.0 < self.top_k < 1.0:
                raise ValueError(
                    f"top_k must be a whole number of at least 1, or a share of a layer's experts "
                    f"in (0, 1), not {self.top_k!r}."
                )
        else:
            _check_whole("top_k", self.top_k)
        _check_whole("segments", self.segments)
        if self.router_rank is not None:
            _check_whole("router_rank", self.router_rank)
        if not isinstance(self.share_a, bool):
            raise TypeError(f"share_a must be true or false, not {self.share_a!r}.")

    def check_rank(self, rank: int, name: str = "r") -> None:
        """Check that experts of a rank can be cut.

        Raises:
            ValueError: If the rank is no multiple of `segments`; says which would be.
        """
        if rank % self.segments:
            raise ValueError(
                f"{name} is {rank}, which segments: {self.segments} cannot cut into equal parts: "
                f"take a multiple of {self.segments}, or other segments."
            )

    def experts(self, planned: int) -> int:
        """Experts of a layer to which a plan gives that many."""
        return planned * self.segments

    def active(self, planned: int) -> int:
        """Experts that a token uses in a layer to which a plan gives that many, at least 1."""
        if isinstance(self.top_k, float):
            chosen = max(1, math.floor(self.top_k * planned + 0.5))
        else:
            chosen = min(self.top_k, planned)
        return chosen * self.segments

    def tensors(
        self, in_features: int, out_features: int, planned: int, rank: int
    ) -> dict[str, tuple[int, int]]:
        """Name and shape of what one adapted linear layer trains.

        Args:
            in_features: Input features of the linear layer.
            out_features: Its output features.
            planned: Experts that the plan gives it; 0 for a layer that is left alone.
            rank: Rank of each of them.

        Returns:
            Attribute of the layer to shape: `alphalora_A` [planned * rank, in], or [rank, in]
            where it is shared, `alphalora_B` [out, planned * rank], and for two or more experts
            `alphalora_router` [experts, in], or [experts, R] with `alphalora_router_down`
            [R, in].
        """
        if planned == 0:
            return {}
        experts, width = self.experts(planned), planned * rank
        shapes = {
            "alphalora_A": (rank if self.share_a else width, in_features),
            "alphalora_B": (out_features, width),
        }
        if experts > 1:
            shapes["alphalora_router"] = (experts, self.router_rank or in_features)
            if self.router_rank is not None:
                shapes["alphalora_router_down"] = (self.router_rank, in_features)
        return shapes

    def parameters(self, in_features: int, out_features: int, planned: int, rank: int) -> int:
        """Trainable parameters of one adapted linear layer, see `tensors`."""
        shapes = self.tensors(in_features, out_features, planned, rank).values()
        return sum(rows * columns for rows, columns in shapes)


def _check_whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number (a plain int), not {value!r}.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value!r}.")
