"""Numbers in words."""

from __future__ import annotations

__all__ = ["numeral", "plural"]


def numeral(value: float) -> str:
    """Return ``1,234``, or ``4.3`` for what is no whole number."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def plural(number: float, one: str, many: str | None = None) -> str:
    """Return ``1 expert``, ``2 experts``; ``many`` is for a word that takes no s."""
    return f"{numeral(number)} {one if number == 1 else many or f'{one}s'}"
