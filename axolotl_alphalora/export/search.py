"""The smallest rank at which an export is near enough to the adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ..evaluation import Moments, measure_divergence
from ..progress import Stages
from ..samples import Sample
from .factors import Factors, Method, build
from .lora import attach


def smallest_rank(
    model: Any,
    moments: Mapping[str, Moments],
    held_out: Sequence[Sample],
    max_kl: float,
    *,
    method: Method,
    stage: Stages | None = None,
) -> int:
    """Halve the ranks again and again, measuring each as the price is.

    Args:
        model: The `PeftModel` with the adapter `default`.
        moments: As of the calibration.
        held_out: Rows with labels that the divergence is measured on.
        max_kl: The KL divergence per token that is allowed.
        method: How mixtures are replaced.
        stage: Shows progress.

    Returns:
        The rank; the export of all lower ones that were tried is further away.

    Raises:
        ValueError: If even uncompressed factors are further away than that.
    """

    def price(rank: int | None) -> tuple[float, int]:
        updates = build(model, moments, method=method, rank=rank)
        most = max(update.rank for update in updates.values())
        what = f"Measuring rank {most}"
        kl = _measured(model, updates, held_out, stage and stage(what))
        return kl, most

    kl, high = price(None)
    if kl > max_kl:
        raise ValueError(
            f"At full rank ({high}) the export is {kl:.4g} nats a token away from the routed "
            f"adapter, more than --max-kl {max_kl:g} allows, so no rank will do and nothing was "
            "written. Allow more, or give more --samples."
        )
    return lowest(high, lambda rank: price(rank)[0] <= max_kl)


def lowest(high: int, enough: Callable[[int], bool]) -> int:
    """Return the lowest rank that is enough, if all above it are too, by bisection.

    Args:
        high: A rank that is enough.
        enough: Whether a rank is.
    """
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def _measured(
    model: nn.Module, updates: Mapping[str, Factors], held_out: Sequence[Sample], progress: Any
) -> float:
    attach(model, updates)
    step = progress and progress([sample.task for sample in held_out])
    try:
        return measure_divergence(model, held_out, progress=step).kl
    finally:
        model.delete_adapter("export")  # type: ignore[operator]
