"""Which of the fused paths are taken; each has a plain twin that computes the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

__all__ = ["FusedPaths", "fused_paths", "using"]


@dataclass(frozen=True)
class FusedPaths:
    """Switches; read from the environment when the package is imported.

    Attributes:
        function: One autograd function for a layer's experts (``ALPHALORA_FUSED``, default 1); off:
            plain operators and autograd.
        triton: On a CUDA GPU, its gating as one Triton kernel each way (``ALPHALORA_TRITON``,
            default 0: no GPU has measured it yet); off: plain operators.
    """

    function: bool = True
    triton: bool = False


def _from_environment() -> FusedPaths:
    return FusedPaths(
        function=_switch("ALPHALORA_FUSED", True), triton=_switch("ALPHALORA_TRITON", False)
    )


def _switch(name: str, default: bool) -> bool:
    value = os.environ.get(name, "").strip().lower()
    if value in ("", "0", "1"):
        return default if value == "" else value == "1"
    raise ValueError(f"The environment variable {name} must be 0 or 1, not {value!r}.")


_current = _from_environment()


def fused_paths() -> FusedPaths:
    """The switches in force."""
    return _current


@contextmanager
def using(**switches: bool) -> Iterator[None]:
    """Set switches for the body of a `with` statement, in all threads of the process.

    Args:
        **switches: Attributes of `FusedPaths`.
    """
    global _current
    before = _current
    _current = replace(before, **switches)
    try:
        yield
    finally:
        _current = before
