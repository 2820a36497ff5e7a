"""Principal components of a stream of tokens, by PEFT's incremental SVD."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..hosts.peft import IncrementalPCA

FEWEST_TOKENS = 1024
"""Tokens are gathered up to this number before the components are updated, so that short samples
do not cost an SVD each; or up to twice the number of components where that is more."""

_SEED = 42  # of the random projections of the SVD, PEFT's own
_OVERSAMPLING = 2  # columns of the random projection for each component, PEFT's own too


class Components:
    """The first principal components of all tokens so far.

    Args:
        count: How many components are kept.
        features: Size of a token.
    """

    def __init__(self, count: int, features: int) -> None:
        self._count = min(count, features)
        self._features = features
        self._pca: IncrementalPCA | None = None
        self._waiting: list[Tensor] = []
        self._batch = max(_OVERSAMPLING * self._count, FEWEST_TOKENS)
        self.tokens = 0

    def add(self, tokens: Tensor) -> None:
        """Take in tokens, ``[n, features]`` of any floating-point type; they are copied."""
        if not len(tokens):
            return
        self.tokens += len(tokens)
        self._waiting.append(tokens.clone())
        if sum(map(len, self._waiting)) >= self._batch:
            self._update()

    def ratios(self) -> tuple[float, ...] | None:
        """The share of the tokens' variance that each component explains, the largest first.

        Returns:
            One number in [0, 1] for each component, all 0 where the tokens do not vary; None if
            there were fewer tokens than components.
        """
        if self.tokens < self._count:
            return None
        if self._waiting:
            self._update()
        assert self._pca is not None
        found = self._pca.explained_variance_ratio_.double().nan_to_num(nan=0.0)
        return tuple(found.clamp(0, 1).tolist())

    def _update(self) -> None:
        from ..hosts.peft import IncrementalPCA

        tokens = torch.cat(self._waiting).float()
        self._waiting = []
        rows = len(tokens)
        if self._pca is None:
            self._pca = IncrementalPCA(
                n_components=self._count,
                lowrank=True,
                lowrank_q=_OVERSAMPLING * self._count,
                lowrank_seed=_SEED,
            )
        else:
            rows += self._count + 1  # the components so far and the shift of the mean
        # A random projection cannot have more columns than the matrix has rows or columns.
        self._pca.lowrank = _OVERSAMPLING * self._count <= min(rows, self._features)
        with torch.autocast(tokens.device.type, enabled=False):
            # Unchecked: the last tokens may be fewer than the components.
            self._pca.partial_fit(tokens, check_input=False)
