"""Tiny models and samples."""

from helpers.sampling import by_autograd, linears, sequence, tiny, toy  # noqa: F401
