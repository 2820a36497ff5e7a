"""The gating of `gating` as one Triton kernel each way.

Each program takes a tile of tokens with all their experts. The backward pass decides anew from the
logits, so that neither gates nor probabilities are kept.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .gating import Balance, Gated

_TILE = 4096
"""Elements of the hidden states, padding included, that a program holds."""


@triton.jit
def _decide(logits, real_expert, N: tl.constexpr, K: tl.constexpr):
    """Probabilities, chosen experts and gates of a tile, [BT, BN] each; of equals the first."""
    scaled = tl.exp(logits - tl.max(logits, 1)[:, None])
    probabilities = scaled / tl.sum(scaled, 1)[:, None]
    chosen = real_expert
    if K < N:
        columns = tl.arange(0, logits.shape[1])[None, :]
        left = logits
        chosen = columns < 0
        for _ in tl.static_range(K):
            best = tl.argmax(left, 1, tie_break_left=True)[:, None]
            chosen = chosen | (columns == best)
            left = tl.where(columns == best, float("-inf"), left)
    gates = tl.where(chosen, probabilities, 0.0)
    if K > 1 and K < N:
        gates = gates / tl.sum(gates, 1)[:, None]
    return probabilities, chosen, gates


@triton.jit
def _load_logits(logits_ptr, stride, tokens, experts, T, N: tl.constexpr):
    """A tile of logits in fp32, -inf where there is no expert; whether token and expert exist."""
    real = (tokens < T)[:, None] & (experts < N)[None, :]
    logits = tl.load(
        logits_ptr + tokens.to(tl.int64)[:, None] * stride + experts[None, :], mask=real, other=0.0
    ).to(tl.float32)
    return tl.where((experts < N)[None, :], logits, float("-inf")), real


@triton.jit
def _mix(
    hidden_ptr, stride, mixed_ptr, tokens, experts, gates, real,
    N: tl.constexpr, R: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Store a tile of hidden states times gates; the hidden states, [BT, BN, BR], and their places.

    The places are a row, an offset in it, and whether token, expert and rank exist.
    """
    ranks = tl.arange(0, BR)
    rows = tokens.to(tl.int64)[:, None, None]
    place = (experts[:, None] * R + ranks[None, :])[None, :, :]
    inside = real[:, :, None] & (ranks < R)[None, None, :]
    hidden = tl.load(hidden_ptr + rows * stride + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(mixed_ptr + rows * (N * R) + place, hidden * gates[:, :, None], mask=inside)
    return hidden, rows, place, inside


@triton.jit
def _counted(valid_ptr, tokens, T, MASKED: tl.constexpr):
    """1 for the real tokens of a tile, else 0: [BT, 1]."""
    counted = tokens < T
    if MASKED:
        counted = counted & (tl.load(valid_ptr + tokens, mask=counted, other=0) != 0)
    return counted.to(tl.float32)[:, None]


@triton.jit
def _forward(
    hidden_ptr, hidden_stride, logits_ptr, logits_stride, valid_ptr, mixed_ptr, sums_ptr, T,
    N: tl.constexpr, R: tl.constexpr, K: tl.constexpr, MASKED: tl.constexpr,
    BT: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    tokens = tl.program_id(0) * BT + tl.arange(0, BT)
    experts = tl.arange(0, BN)
    logits, real = _load_logits(logits_ptr, logits_stride, tokens, experts, T, N)
    probabilities, chosen, gates = _decide(logits, real, N, K)
    hidden, rows, place, inside = _mix(
        hidden_ptr, hidden_stride, mixed_ptr, tokens, experts, gates, real, N, R, BR
    )
    weight = _counted(valid_ptr, tokens, T, MASKED)
    entropies = -probabilities * tl.log(tl.where(probabilities > 0.0, probabilities, 1.0))
    out = sums_ptr + tl.program_id(0) * (4 * N + 2)
    known = experts < N
    slots = tl.sum(tl.where(chosen, weight, 0.0), 0)
    tl.store(out + experts, slots, mask=known)
    tl.store(out + N + experts, tl.sum(gates * weight, 0), mask=known)
    tl.store(out + 2 * N + experts, tl.sum(probabilities * weight, 0), mask=known)
    tl.store(out + 3 * N + experts, tl.sum(entropies * weight, 0), mask=known)
    tl.store(out + 4 * N, tl.sum(tl.max(gates, 1) * tl.sum(weight, 1), 0))
    tl.store(out + 4 * N + 1, tl.sum(tl.sum(weight, 1), 0))


@triton.jit
def _backward(
    d_mixed_ptr, hidden_ptr, hidden_stride, logits_ptr, logits_stride, valid_ptr, slots_ptr,
    sums_ptr, factor_ptr, mixed_ptr, d_hidden_ptr, d_logits_ptr, T,
    N: tl.constexpr, R: tl.constexpr, K: tl.constexpr, MASKED: tl.constexpr,
    BALANCED: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    tokens = tl.program_id(0) * BT + tl.arange(0, BT)
    experts = tl.arange(0, BN)
    logits, real = _load_logits(logits_ptr, logits_stride, tokens, experts, T, N)
    probabilities, chosen, gates = _decide(logits, real, N, K)
    hidden, rows, place, inside = _mix(
        hidden_ptr, hidden_stride, mixed_ptr, tokens, experts, gates, real, N, R, BR
    )
    d_mixed = tl.load(d_mixed_ptr + rows * (N * R) + place, mask=inside, other=0.0).to(tl.float32)
    d_hidden = d_mixed * gates[:, :, None]
    tl.store(d_hidden_ptr + rows * (N * R) + place, d_hidden, mask=inside)

    d_gates = tl.sum(d_mixed * hidden, 2)
    d_probabilities = tl.zeros_like(gates)
    if BALANCED:
        slots = tl.load(slots_ptr + experts, mask=experts < N, other=0.0)
        norm = tl.maximum(tl.sum(slots, 0) * tl.load(sums_ptr + 4 * N + 1), 1.0)
        share = slots * (tl.load(factor_ptr) / norm)
        d_probabilities = _counted(valid_ptr, tokens, T, MASKED) * share[None, :]
    if K > 1 and K < N:
        d_logits = gates * (d_gates - tl.sum(d_gates * gates, 1)[:, None])
    else:
        d_probabilities += tl.where(chosen, d_gates, 0.0)
        d_logits = tl.zeros_like(gates)
    d_logits += probabilities * (
        d_probabilities - tl.sum(d_probabilities * probabilities, 1)[:, None]
    )
    tl.store(
        d_logits_ptr + tokens.to(tl.int64)[:, None] * N + experts[None, :], d_logits, mask=real
    )


def gate_forward(
    hidden: torch.Tensor,
    logits: torch.Tensor,
    top_k: int,
    valid: torch.Tensor | None,
    copies: int = 1,
) -> Gated:
    """`gating.gate_forward`; keeps the logits."""
    tokens, number = logits.shape
    hidden = hidden if copies == 1 else hidden.repeat(1, copies)
    grid, sizes = _tiles(tokens, hidden.shape[1], number)
    mixed = hidden.new_empty(hidden.shape)
    sums = torch.empty(grid[0], 4 * number + 2, dtype=torch.float32, device=hidden.device)
    if tokens:
        with torch.cuda.device_of(hidden):
            _forward[grid](
                hidden, hidden.stride(0), logits, logits.stride(0), _bytes(valid, logits), mixed,
                sums, tokens, K=top_k, MASKED=valid is not None, **sizes,
            )  # fmt: skip
    return Gated(mixed, (logits,), sums.sum(0))


def gate_backward(
    d_mixed: torch.Tensor,
    hidden: torch.Tensor,
    kept: tuple[torch.Tensor, ...],
    top_k: int,
    valid: torch.Tensor | None,
    balance: Balance | None,
    copies: int = 1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`gating.gate_backward`."""
    (logits,) = kept
    tokens, number = logits.shape
    hidden = hidden if copies == 1 else hidden.repeat(1, copies)
    grid, sizes = _tiles(tokens, hidden.shape[1], number)
    mixed, d_hidden = hidden.new_empty(hidden.shape), hidden.new_empty(hidden.shape)
    d_logits = hidden.new_empty(tokens, number)
    slots, sums, factor = balance or (logits, logits, logits)
    if tokens:
        with torch.cuda.device_of(hidden):
            _backward[grid](
                d_mixed.contiguous(), hidden, hidden.stride(0), logits, logits.stride(0),
                _bytes(valid, logits), slots, sums, factor, mixed, d_hidden, d_logits, tokens,
                K=top_k, MASKED=valid is not None, BALANCED=balance is not None, **sizes,
            )  # fmt: skip
    if copies > 1:
        d_hidden = d_hidden.unflatten(1, (copies, -1)).sum(1)
    return mixed, d_hidden, d_logits


def _tiles(tokens: int, width: int, number: int) -> tuple[tuple[int], dict[str, int]]:
    """The grid, and the sizes that the kernels are compiled for."""
    rank = width // number
    experts, ranks = triton.next_power_of_2(number), triton.next_power_of_2(rank)
    tile = max(_TILE // (experts * ranks), 1)
    sizes = {"N": number, "R": rank, "BT": tile, "BN": experts, "BR": ranks}
    return (triton.cdiv(tokens, tile),), sizes


def _bytes(valid: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    """The mask as bytes; without one some pointer, which is not read."""
    return other if valid is None else valid.to(torch.bool).contiguous().view(torch.uint8)
