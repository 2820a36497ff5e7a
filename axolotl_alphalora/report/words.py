"""Numbers, names and the shape of a mixture, as they are put into sentences and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..mixture import Mixture

WARNING = "Warning: "
"""How a paragraph begins that deserves attention."""

_LISTED = 4


def numeral(value: float) -> str:
    """Return `1,234`, or `4.3` for what is no whole number."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def plural(number: float, one: str, many: str | None = None) -> str:
    """Return `1 expert`, `2 experts`; `many` is for a word that takes no s."""
    return f"{numeral(number)} {one if number == 1 else many or f'{one}s'}"


def decimal(value: float | None, decimals: int = 3) -> str:
    """Return a number with three decimals, or as many as are wanted; a dash for None."""
    return "-" if value is None else f"{value:.{decimals}f}"


def spread(values: Iterable[int], between: str = "-") -> str:
    """Return the value that all have, or the least and the largest."""
    known = set(values)
    low, high = min(known), max(known)
    return str(low) if low == high else f"{low}{between}{high}"


def first_of(names: Sequence[str]) -> str:
    """Name the first, and count the others."""
    return f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"


def listed(names: Sequence[str]) -> str:
    """Name the first four, and count the others."""
    more = len(names) - _LISTED
    return "; ".join(names[:_LISTED]) + (f"; and {more:,} more" if more > 0 else "")


def model_name(model: str) -> str:
    """Return a hub id as it is, and a directory by its name."""
    return Path(model).name if Path(model).is_absolute() else model


def source_line(model: str, weights: Mapping[str, Any]) -> str:
    """Return the model's name and where its weights came from."""
    if weights["source"] == "none":
        return model_name(model)
    read = (weights.get(key) for key in ("source", "dtype", "quantization"))
    return f"{model_name(model)} ({', '.join(dict.fromkeys(str(part) for part in read if part))})"


def top_k_words(top_k: int | float) -> str:
    """Return `top-2`, or `top-25%` for a share of a layer's experts."""
    return f"top-{top_k:g}" if isinstance(top_k, int) else f"top-{100 * top_k:g}%"


def best_words(mixture: Mixture, counts: Iterable[int]) -> str:
    """Return how many experts a router chooses: `2`, or `4-12` where layers differ.

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
        One sentence; none for whole experts with an A each, full routers and a whole `top_k`.
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
