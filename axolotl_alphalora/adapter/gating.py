"""Gating of stacked experts, forward and backward, with their derivatives written out.

What `functional.route` and a product with the hidden states do, without autograd: a handful of
tensors of [T, N] instead of a graph of some twenty operators. `triton_gating` does the same in one
kernel each way.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .functional import cast, route, weigh
from .usage import router_sums

__all__ = ["Gated", "gate_backward", "gate_forward"]


class Gated(NamedTuple):
    """What the gates made of the hidden states.

    Attributes:
        mixed: [T, N*r], the hidden states times their experts' gates.
        gates: [T, N] fp32.
        probabilities: [T, N] fp32; the very same tensor as `gates` where all experts are used.
        sums: [3N + 3] fp32, see `router_sums`.
    """

    mixed: torch.Tensor
    gates: torch.Tensor
    probabilities: torch.Tensor
    sums: torch.Tensor


def gate_forward(
    hidden: torch.Tensor,
    logits: torch.Tensor,
    top_k: int,
    valid: torch.Tensor | None,
) -> Gated:
    """Weigh the experts' hidden states with their gates, and count what the router decided.

    Args:
        hidden: [T, N*r].
        logits: [T, N], the router's.
        top_k: Experts per token, from 1 to N.
        valid: [T], 1 for real tokens and 0 for padding, or None when all are real.
    """
    gates, probabilities, selected = route(logits, top_k)
    sums = router_sums(gates, probabilities, selected, valid)
    mixed = weigh(hidden, gates)
    return Gated(mixed, gates, probabilities, sums)


def gate_backward(
    d_mixed: torch.Tensor,
    hidden: torch.Tensor,
    gates: torch.Tensor,
    probabilities: torch.Tensor,
    top_k: int,
    scale: float,
    balance: torch.Tensor | None,
    valid: torch.Tensor | None,
) -> torch.Tensor:
    """Gradients of the hidden states and the logits.

    A renormalised top-k softmax is a softmax over the chosen logits, so that its derivative has
    the same form with the gates in the place of the probabilities.

    Args:
        d_mixed: [T, N*r], gradient of ``scale * mixed``.
        hidden: [T, N*r].
        gates: [T, N] fp32.
        probabilities: [T, N] fp32.
        top_k: Experts per token.
        scale: Factor on what the mixed hidden states become.
        balance: [N] fp32, gradient of the probabilities of each real token, or None.
        valid: [T], as in `gate_forward`.

    Returns:
        [T, N*r + N] in the dtype of ``hidden``: its gradient, and that of the logits.
    """
    number = gates.shape[-1]
    products = (d_mixed * hidden).unflatten(-1, (number, -1))
    d_gates = products.sum(-1, dtype=torch.float32).mul_(scale)
    d_probabilities = None
    if balance is not None:
        d_probabilities = balance if valid is None else valid.to(balance).unsqueeze(-1) * balance
    if top_k == 1 and number > 1:
        d_gates = d_gates * (gates > 0)
    if top_k in (1, number):  # the gates are the probabilities of the chosen, as they are
        if d_probabilities is not None:
            d_gates = d_gates + d_probabilities
        d_logits = _softmax_backward(d_gates, probabilities)
    else:
        d_logits = _softmax_backward(d_gates, gates)
        if d_probabilities is not None:
            d_logits += _softmax_backward(d_probabilities.expand_as(gates), probabilities)
    return torch.cat([weigh(d_mixed, gates * scale), cast(d_logits, hidden.dtype)], -1)


def _softmax_backward(grad: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    return torch._softmax_backward_data(grad, probabilities, -1, probabilities.dtype)
