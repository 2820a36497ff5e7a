"""Numbers and names as text, the same wherever they stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

WARNING = "Warning: "
"""How a paragraph begins that deserves attention."""

_LISTED = 4


def numeral(value: float) -> str:
    """Return ``1,234``, or ``4.3`` for what is no whole number."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def plural(number: float, one: str, many: str | None = None) -> str:
    """Return ``1 expert``, ``2 experts``; ``many`` is for a word that takes no s."""
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
