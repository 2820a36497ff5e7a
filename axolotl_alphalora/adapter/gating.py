"""Gating of stacked experts, forward and backward, with its derivative written out.

What `functional.route` and a product with the hidden states do, without autograd: a handful of
tensors of [T, N] instead of a graph of some twenty operators. `triton_gating` does the same in one
kernel each way.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..hosts.torch import softmax_backward
from .functional import by_expert, cast, route, weigh
from .usage import router_sums


class Gated(NamedTuple):
    """What the gates made of the hidden states.

    Attributes:
        mixed: [T, N*r], the hidden states times their experts' gates.
        kept: What the backward pass needs beside the hidden states; the logits come first.
        sums: [4N + 2] fp32, see `router_sums`.
    """

    mixed: torch.Tensor
    kept: tuple[torch.Tensor, ...]
    sums: torch.Tensor


class Balance(NamedTuple):
    """A load-balancing loss that takes part in the gradient.

    Attributes:
        slots: [N] fp32, the selected slots that it counts.
        sums: [4N + 2] fp32, `Gated.sums`.
        factor: 0-d fp32, N times what the loss counts in the total that is differentiated.
    """

    slots: torch.Tensor
    sums: torch.Tensor
    factor: torch.Tensor

    def d_probabilities(self) -> torch.Tensor:
        """Gradient of the probabilities of a real token: [N]. See `load_balancing_loss`."""
        norm = (self.slots.sum() * self.sums[-1]).clamp_min(1.0)
        return self.slots * (self.factor / norm)


def gate_forward(
    hidden: torch.Tensor,
    logits: torch.Tensor,
    top_k: int,
    valid: torch.Tensor | None,
    copies: int = 1,
) -> Gated:
    """Weigh the experts' hidden states with their gates, and count what the router decided.

    Args:
        hidden: [T, N*r], or [T, N*r / c] where experts share their A.
        logits: [T, N], the router's.
        top_k: Experts per token, from 1 to N.
        valid: [T], 1 for real tokens and 0 for padding, or None when all are real.
        copies: c.
    """
    gates, probabilities, selected = route(logits, top_k)
    sums = router_sums(gates, probabilities, selected, valid)
    kept = (logits,) if gates is probabilities else (logits, selected == 0.0)
    return Gated(weigh(hidden, gates, copies), kept, sums)


def gate_backward(
    d_mixed: torch.Tensor,
    hidden: torch.Tensor,
    kept: tuple[torch.Tensor, ...],
    top_k: int,
    valid: torch.Tensor | None,
    balance: Balance | None,
    copies: int = 1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of the hidden states and the logits.

    A renormalised top-k softmax is a softmax over the chosen logits, so that its derivative has
    the same form with the gates in the place of the probabilities.

    Args:
        d_mixed: [T, N*r], gradient of `Gated.mixed`.
        hidden: As in `gate_forward`.
        kept: `Gated.kept`.
        top_k: Experts per token.
        valid: [T], as in `gate_forward`.
        balance: The load-balancing loss, or None.
        copies: As in `gate_forward`.

    Returns:
        [T, N*r], `Gated.mixed` once more; and in the same dtype the gradients of the hidden states,
        in their shape, and of the logits, [T, N].
    """
    number = kept[0].shape[-1]
    gates, probabilities = _gates_again(top_k, *kept)
    products = d_mixed * (hidden if copies == 1 else hidden.repeat(1, copies))
    d_gates = by_expert(products, number).sum(-1, dtype=torch.float32)
    d_probabilities = None
    if balance is not None:
        d_probabilities = balance.d_probabilities().expand_as(gates)
        if valid is not None:
            d_probabilities = d_probabilities * valid.unsqueeze(-1)
    if top_k in (1, number):  # the gates are the probabilities of the chosen, as they are
        if top_k < number:
            d_gates.masked_fill_(kept[1], 0.0)
        if d_probabilities is not None:
            d_gates += d_probabilities
        d_logits = softmax_backward(d_gates, probabilities)
    else:
        d_logits = softmax_backward(d_gates, gates)
        if d_probabilities is not None:
            d_logits += softmax_backward(d_probabilities, probabilities)
    gates = cast(gates, hidden.dtype)
    d_hidden = weigh(d_mixed, gates)
    if copies > 1:
        d_hidden = by_expert(d_hidden, copies).sum(-2)
    return weigh(hidden, gates, copies), d_hidden, cast(d_logits, hidden.dtype)


def _gates_again(
    top_k: int, logits: torch.Tensor, left_out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gates and probabilities, [T, N] in fp32, as `route` found them.

    Of N experts they would take 8 N bytes a token to keep; the logits are often kept anyway, with
    the hidden states that come from the same product.

    Args:
        top_k: Experts per token.
        logits: [T, N].
        left_out: [T, N], which experts were not chosen; None where all were.
    """
    probabilities = logits.softmax(-1, torch.float32)
    if left_out is None:
        return probabilities, probabilities
    if top_k == 1:
        return probabilities.masked_fill(left_out, 0.0), probabilities
    return logits.masked_fill(left_out, -torch.inf).softmax(-1, torch.float32), probabilities
