"""The arithmetic of a routed mixture of LoRA experts, as plain functions of tensors.

Notation: T tokens (any leading shape), N experts, rank r of one expert, k experts per token; of
experts that are cut, those are the pieces. The experts of a module are stored stacked, so that N
experts cost two matrix products and no loop: `A` is [N*r, in], `B` is [out, N*r], the router is
[N, in]. One A that experts share is [N*r / c, in], and stands for c copies of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def route(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Turn router logits into gates (MoLA, arXiv 2402.08562, section 3).

    The softmax runs in fp32 over all experts. The `top_k` largest probabilities are kept and
    renormalised to sum to 1. With one expert per token out of several they are *not*
    renormalised: a gate that is always exactly 1 would carry no gradient from the task to
    the router.

    Args:
        logits: [..., N], any floating dtype.
        top_k: Experts per token, from 1 to N.

    Returns:
        `(gates, probabilities, selected)`, each [..., N] in fp32. `selected` is 1 for the
        chosen experts, else 0, and carries no gradient.
    """
    num_experts = logits.shape[-1]
    probabilities = F.softmax(logits, dim=-1, dtype=torch.float32)
    if top_k == num_experts:
        return probabilities, probabilities, torch.ones_like(probabilities)
    chosen = probabilities.topk(top_k, dim=-1).indices
    selected = torch.zeros_like(probabilities).scatter(-1, chosen, 1.0)
    gates = probabilities * selected
    if top_k > 1:
        gates = gates / gates.sum(dim=-1, keepdim=True)
    return gates, probabilities, selected


def gate(logits: torch.Tensor, top_k: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The gates of `route` alone, in fewer operations: a decode step is made of small ones.

    A renormalised softmax is that of the chosen logits.

    Args:
        logits: [..., N], any floating dtype.
        top_k: Experts per token, from 1 to N.
        dtype: Of the result; the softmax itself is computed in fp32.

    Returns:
        [..., N] in `dtype`.
    """
    if top_k == logits.shape[-1]:
        return cast(logits.softmax(-1, torch.float32), dtype)
    kept, chosen = logits.topk(top_k, -1, sorted=False)
    if top_k == 1:
        kept = logits.softmax(-1, torch.float32).gather(-1, chosen)
    else:
        kept = kept.softmax(-1, torch.float32)
    return torch.zeros_like(logits, dtype=dtype).scatter_(-1, chosen, cast(kept, dtype))


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cast, where that changes anything: even a cast to the same dtype costs a decode step time."""
    return x if x.dtype == dtype else x.to(dtype)


def mix_experts(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, gates: torch.Tensor | None
) -> torch.Tensor:
    """Sum of the experts' outputs, each weighted with its gate: `sum_e g_e B_e A_e x`.

    Args:
        x: [..., in], in the dtype of `a` and `b`.
        a: [N*r, in], the experts' down projections stacked, or [N*r / c, in], shared.
        b: [out, N*r], the experts' up projections side by side.
        gates: [..., N] in fp32, or None for a single expert whose gate is exactly 1.

    Returns:
        [..., out], in the dtype of `x`.
    """
    hidden = F.linear(x, a)
    return F.linear(hidden if gates is None else weigh(hidden, gates, copies_of(a, b)), b)


def router_logits(x: torch.Tensor, router: torch.Tensor, down: torch.Tensor | None) -> torch.Tensor:
    """What the experts are chosen by: `V x`, or `V U x` for a router of low rank.

    Args:
        x: [..., in].
        router: V, [N, in], or [N, R] where there is a `down`.
        down: U, [R, in], or None.

    Returns:
        [..., N].
    """
    return F.linear(x if down is None else F.linear(x, down), router)


def copies_of(a: torch.Tensor, b: torch.Tensor) -> int:
    """How often the rows of `a` are used: 1, or, where experts share it, once for each."""
    return b.shape[1] // a.shape[0]


def weigh(hidden: torch.Tensor, gates: torch.Tensor, copies: int = 1) -> torch.Tensor:
    """`g_e h_e` for every expert.

    Args:
        hidden: [..., N*r / c], the experts' hidden states.
        gates: [..., N].
        copies: c.

    Returns:
        [..., N*r], in the dtype of `hidden`.
    """
    number, gates = gates.shape[-1], cast(gates, hidden.dtype)
    if copies == 1:
        return (by_expert(hidden, number) * gates.unsqueeze(-1)).flatten(-2)
    shared = by_expert(hidden, number // copies).unsqueeze(-3)
    return (shared * by_expert(gates, copies).unsqueeze(-1)).flatten(-3)


def by_expert(hidden: torch.Tensor, number: int) -> torch.Tensor:
    """View [..., N*r] as [..., N, r]; `torch.Tensor.unflatten` costs more than a small product."""
    return hidden.reshape(*hidden.shape[:-1], number, hidden.shape[-1] // number)


def load_balancing_loss(sums: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Load-balancing loss of a router, `N * sum_e f_e P_e`; 1 at perfect balance.

    `f_e` is expert e's share of all selected slots (no gradient), `P_e` its mean
    probability, both over the valid tokens (Switch Transformer, arXiv 2101.03961, equation 4,
    with k slots per token).

    Args:
        sums: [..., 4N + 2], as `router_sums` returns them.
        slots: [..., N], the selected slots of each expert: those in `sums`, or their sum over
            processes (global-batch balancing, arXiv 2501.11873).

    Returns:
        [...] in fp32.
    """
    number = slots.shape[-1]
    share = slots.detach() / slots.detach().sum(-1, keepdim=True).clamp_min(1.0)
    probabilities = sums[..., 2 * number : 3 * number]
    return number * (share * probabilities).sum(-1) / sums[..., -1].detach().clamp_min(1.0)
