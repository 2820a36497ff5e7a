"""What a mixture looks like in a layer, in words: of a plan, and of an adapter."""

from __future__ import annotations

from collections.abc import Iterable

from ..mixture import Mixture
from .tables import spread


def top_k_words(top_k: int | float) -> str:
    """Return ``top-2``, or ``top-25%`` for a share of a layer's experts."""
    return f"top-{top_k:g}" if isinstance(top_k, int) else f"top-{100 * top_k:g}%"


def best_words(mixture: Mixture, counts: Iterable[int]) -> str:
    """Return how many experts a router chooses: ``2``, or ``4-12`` where layers differ.

    Args:
        mixture: The shape.
        counts: Experts that each layer with a router is planned to have.
    """
    whole = isinstance(mixture.top_k, int) and mixture.segments == 1
    return str(mixture.top_k) if whole else spread({mixture.active(n) for n in counts} or {0})


def shape_line(mixture: Mixture, counts: Iterable[int], ranks: Iterable[int]) -> list[str]:
    """Say what a layer's experts are cut into, how many of them are active, and what they share.

    Args:
        mixture: The shape.
        counts: Experts that each layer is planned to have; those without any do not count.
        ranks: Ranks that they have before they are cut.

    Returns:
        One sentence; none for whole experts with an A each, full routers and a whole ``top_k``.
    """
    planned = {count for count in counts if count}
    parts = mixture.segments
    clauses = []
    if parts > 1 or isinstance(mixture.top_k, float):
        said = f"{spread(planned)} {'experts' if max(planned) > 1 else 'expert'}"
        said += " a layer" if len(planned) > 1 else ""
        if parts > 1:
            said += f", each cut into {parts} of rank {spread(rank // parts for rank in ranks)}"
        active = spread(mixture.active(count) for count in planned)
        clauses += [said, f"{active} of {spread(map(mixture.experts, planned))} active"]
    if mixture.router_rank is not None:
        clauses.append(f"routers of rank {mixture.router_rank}")
    if mixture.share_a:
        clauses.append("one A shared by the experts of a layer")
    text = "; ".join(clauses)
    return [f"{text[0].upper()}{text[1:]}."] if text else []
