"""Tiny models and samples."""

from helpers.sampling import linears, sequence, tiny, toy  # noqa: F401
