"""Strict reading of decoded JSON: every error names the path of the key it is about."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

__all__ = [
    "PlanError",
    "check_object",
    "read_choice",
    "read_count",
    "read_list",
    "read_number",
    "read_object",
    "read_text",
]


class PlanError(ValueError):
    """A plan that cannot be used; the message names the key, and the file if there is one."""


def read_object(value: Any, path: str, keys: Collection[str]) -> dict[str, Any]:
    """Return a JSON object that has exactly the given keys.

    Args:
        value: The decoded value.
        path: Key path of the value, empty for the whole document.
        keys: Names of its keys.

    Raises:
        PlanError: If it is no object, or a key is missing or unknown.
    """
    check_object(value, path)
    prefix = f"{path}." if path else ""
    for key in keys:
        if key not in value:
            raise PlanError(f"{prefix}{key} is missing")
    for key in value:
        if key not in keys:
            raise PlanError(f"{prefix}{key} is not a key of a plan")
    return value


def check_object(value: Any, path: str) -> None:
    """Raise PlanError if a value is no JSON object."""
    if not isinstance(value, dict):
        raise PlanError(f"{path or 'the document'} must be an object, not {_show(value)}")


def read_list(value: Any, path: str) -> list[Any]:
    """Return a JSON array, or raise PlanError."""
    if not isinstance(value, list):
        raise PlanError(f"{path} must be an array, not {_show(value)}")
    return value


def read_text(value: Any, path: str) -> str:
    """Return a string that is not empty, or raise PlanError."""
    if not isinstance(value, str) or not value:
        raise PlanError(f"{path} must be a string that is not empty, not {_show(value)}")
    return value


def read_choice(value: Any, path: str, choices: Collection[str]) -> str:
    """Return a string that is one of the choices, or raise PlanError."""
    if not isinstance(value, str) or value not in choices:
        raise PlanError(f"{path} must be one of {', '.join(choices)}, not {_show(value)}")
    return value


def read_count(value: Any, path: str, minimum: int = 0) -> int:
    """Return an integer of at least ``minimum``, or raise PlanError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise PlanError(f"{path} must be an integer of at least {minimum}, not {_show(value)}")
    return value


def read_number(value: Any, path: str) -> float:
    """Return a finite number as a float, or raise PlanError."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise PlanError(f"{path} must be a finite number, not {_show(value)}")
    return float(value)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
