"""A routed mixture of LoRA experts as one autograd function.

The arithmetic is that of `functional`: `y + s * sum_e g_e B_e A_e dropout(x)`. Autograd would
keep the dropped-out input and every tensor of the routing; what is kept here is the layer's input
as it came (once for all layers that share it), a byte for each element that dropout looked at, the
hidden states [T, N*r] ([T, r] of a shared A), and of the routing the logits [T, N], or [T, R] in
the middle of a router of rank R, and a byte for each that says whether its expert was chosen. The
output is added to in place where it may be.

There is no second derivative, and neither vmap nor forward-mode differentiation: for those take
`functional`'s plain operators (`ALPHALORA_FUSED=0`).

`FusedPaths` says which of the fused paths are taken; each has a plain twin that computes the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from . import gating
from .balance import BalanceTerm
from .functional import cast, copies_of
from .gating import Balance
from .loss_scale import read_loss_scale


@dataclass(frozen=True)
class FusedPaths:
    """Switches; read from the environment when the package is imported.

    Attributes:
        function: One autograd function for a layer's experts (`ALPHALORA_FUSED`, default 1); off:
            plain operators and autograd.
        triton: On a CUDA GPU, its gating as one Triton kernel each way (`ALPHALORA_TRITON`,
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


def keep_mask(x: torch.Tensor, p: float) -> torch.Tensor:
    """Draw which elements survive, from the default generator of the tensor's device.

    On a CPU, eight elements share a random word of 64 bits: `torch.nn.functional.dropout` draws one
    for each, which is most of its time. A byte is compared with one of the two whole numbers next
    to `256 p`, drawn for each row so that every element is dropped with probability p. Elements
    of a row share that number, and so are not quite independent: their covariance is 1 / 512^2 at
    most.

    Args:
        x: [T, in], whose shape and device to use.
        p: Probability to drop an element, in [0, 1).

    Returns:
        uint8 [T, in]: 1 to keep, 0 to drop.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or p > 254 / 256:
        return torch.empty_like(x, dtype=torch.uint8).bernoulli_(1.0 - p)
    words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device)
    words.random_(-(1 << 63), None)
    levels = words.view(torch.uint8)[: x.numel()].view(x.shape)
    dropped = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
    return levels.ge_(dropped.uniform_(256 * p, 256 * p + 1).to(torch.uint8))


def keep_factors(keep: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask as something to multiply with: on a CPU, each product of two dtypes casts anew."""
    return keep.to(dtype) if keep.device.type == "cpu" else keep


def apply_factors(tokens: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Zero what is dropped.

    Args:
        tokens: [T, in].
        factors: [T, in], from `keep_factors`; of the tokens' dtype, they are overwritten.
    """
    return factors.mul_(tokens) if factors.dtype == tokens.dtype else tokens * factors


def compute_dtype(x: torch.Tensor, a: torch.Tensor) -> torch.dtype:
    """What the products run in: autocast's dtype, or that of the adapter's weights."""
    return torch.get_autocast_dtype(x.device.type) if _autocasts(x) else a.dtype


def add_experts(
    result: torch.Tensor,
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    router: torch.Tensor | None,
    router_down: torch.Tensor | None = None,
    *,
    top_k: int,
    scaling: float,
    dropout: float,
    valid: torch.Tensor | None,
    term: BalanceTerm,
    in_place: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Add a mixture's output to that of the base layer; its gradient includes the balance loss.

    Args:
        result: [..., out], of the base layer.
        x: [..., in], in any floating dtype.
        a: [N*r, in], the experts' down projections stacked, or [N*r / c, in], of which c copies
            would be.
        b: [out, N*r], their up projections side by side.
        router: [N, in], or None for a single expert whose gate is exactly 1.
        router_down: [R, in] for a router of rank R, which is then [N, R]; None for a full one.
        top_k: Experts per token, from 1 to N.
        scaling: Factor on the mixture's output.
        dropout: Probability to drop an element of the experts' input.
        valid: [T], 1 for real tokens and 0 for padding, or None when all are real.
        term: How the load-balancing loss counts.
        in_place: Whether `result`, if it is in `compute_dtype`, may be overwritten. It must then
            be contiguous, no view, and nobody else's.

    Returns:
        The sum in the dtype of `result`; and with a router its `router_sums` and the slots that
        its load-balancing loss counts, else None twice.
    """
    # In a model on several devices, what the balancer knows of the batch is on the first.
    if valid is not None:
        valid = valid.to(x.device)
    if isinstance(term.weight, torch.Tensor):
        term = term._replace(weight=term.weight.to(x.device))
    return _AddExperts.apply(
        result, x, a, b, router, router_down, valid, *term, top_k, scaling, dropout, in_place
    )


class _AddExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, result, x, a, b, router, router_down, valid, weight, coefficient, key, over_ranks,
        top_k, scaling, dropout, in_place,
    ):  # fmt: skip
        dtype = compute_dtype(x, a)
        kernels = _kernels(x)
        keep = routed = sums = slots = None
        kept: tuple[torch.Tensor, ...] = ()
        with _plain_dtypes(x):
            tokens = cast(x.reshape(-1, x.shape[-1]), dtype)
            down, up = cast(a, dtype), cast(b, dtype)
            inputs = tokens
            if dropout > 0.0:
                scaling = scaling / (1.0 - dropout)
                keep = keep_mask(tokens, dropout)
                inputs = apply_factors(tokens, keep_factors(keep, dtype))
            if router is None:
                hidden = mixed = inputs @ down.t()
            else:
                reads = cast(router if router_down is None else router_down, dtype)
                if keep is None:
                    both = tokens @ torch.cat([down, reads]).t()
                    hidden, logits = both.tensor_split([len(down)], -1)
                else:
                    hidden, logits = inputs @ down.t(), tokens @ reads.t()
                if router_down is not None:
                    routed, logits = logits, logits @ cast(router, dtype).t()
                mixed, kept, sums = kernels.gate_forward(
                    hidden, logits, top_k, valid, copies_of(a, b)
                )
                if routed is not None:
                    kept = kept[1:]  # the logits, which are a small product away
                term = BalanceTerm(weight, coefficient, key, over_ranks)
                slots = term.slots(sums, len(router))
            if result.dtype == dtype:
                if in_place:
                    ctx.mark_dirty(result)
                else:  # no view of what addmm returns: others may change the output in place
                    result = result.clone(memory_format=torch.contiguous_format)
                result.view(-1, result.shape[-1]).addmm_(mixed, up.t(), alpha=scaling)
            else:
                delta = cast(mixed @ up.t(), result.dtype).view(result.shape)
                result = torch.add(result, delta, alpha=scaling)
        if not torch.compiler.is_compiling():
            ctx.set_materialize_grads(False)  # of the sums, which have none
        if router is not None:
            ctx.mark_non_differentiable(sums, slots)
        ctx.save_for_backward(
            x, a, b, router, router_down, keep, valid, hidden, routed, sums, slots,
            weight if isinstance(weight, torch.Tensor) else None, *kept,
        )  # fmt: skip
        ctx.weight = 1.0 if isinstance(weight, torch.Tensor) else weight
        ctx.settings = kernels, dtype, top_k, scaling, coefficient, key
        return result, sums, slots

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        (
            x, a, b, router, router_down, keep, valid, hidden, routed, sums, slots, weight, *kept
        ) = ctx.saved_tensors  # fmt: skip
        kernels, dtype, top_k, scaling, coefficient, key = ctx.settings
        with _plain_dtypes(x):
            dy = cast(grad.reshape(-1, grad.shape[-1]), dtype)
            d_mixed = _scaled_product(dy, cast(b, dtype), scaling)
            d_router = d_reads = routing = None
            if router is None:
                mixed, d_hidden = hidden, d_mixed
            else:
                balance = None
                if coefficient:
                    factor = read_loss_scale(grad, key) * (coefficient * ctx.weight * len(router))
                    if weight is not None:
                        factor = factor * weight
                    balance = Balance(slots, sums, factor)
                if routed is not None:
                    kept = [routed @ cast(router, dtype).t(), *kept]
                mixed, d_hidden, d_logits = kernels.gate_backward(
                    d_mixed, hidden, tuple(kept), top_k, valid, balance, copies_of(a, b)
                )
            _, needs_x, needs_a, needs_b, needs_router, needs_down, *_ = ctx.needs_input_grad
            d_b = None
            if needs_b:
                d_b = cast(_scaled_product(mixed.t(), dy, scaling), b.dtype).t()
            needs = needs_x, needs_a, needs_router if router_down is None else needs_down
            if router_down is not None:
                if needs_router:
                    d_router = cast(d_logits.t() @ routed, router.dtype)
                routing = d_logits @ cast(router, dtype), router_down
            elif router is not None:
                routing = d_logits, router
            d_x, d_a, d_reads = _down_backward(d_hidden, routing, x, a, keep, dtype, needs)
        routers = (d_reads, None) if router_down is None else (d_router, d_reads)
        return (grad, d_x, d_a, d_b, *routers, *(None,) * 9)


def _scaled_product(left: torch.Tensor, right: torch.Tensor, factor: float) -> torch.Tensor:
    """A matrix product times a factor, in one operation."""
    if torch.compiler.is_compiling():  # Inductor may take the old values, times 0, for the result
        return (left @ right) * factor
    product = left.new_empty(left.shape[0], right.shape[1])
    return product.addmm_(left, right, beta=0.0, alpha=factor)


def _down_backward(
    d_hidden: torch.Tensor,
    routing: tuple[torch.Tensor, torch.Tensor] | None,
    x: torch.Tensor,
    a: torch.Tensor,
    keep: torch.Tensor | None,
    dtype: torch.dtype,
    needs: tuple[bool, bool, bool],
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of a layer's input, of A and of what else reads it, those of them that are needed.

    Args:
        d_hidden: [T, rows of A], gradient of the hidden states.
        routing: What else reads it, a router, [N, in], or its lower part, [R, in], after the
            gradient of what that gives, [T, N] or [T, R]; or None.
        x: [..., in].
        a: A, [N*r, in] or less, see `add_experts`.
        keep: [T, in], the dropout's mask, or None.
        dtype: What the products run in.
        needs: Whether each of the three is needed.
    """
    tokens, down = cast(x.reshape(-1, x.shape[-1]), dtype), cast(a, dtype)
    d_x = d_a = d_reads = None
    if keep is None:
        grad, weights = d_hidden, down
        if routing is not None:
            grad = torch.cat([d_hidden, routing[0]], -1)
            weights = torch.cat([down, cast(routing[1], dtype)])
        if needs[0]:
            d_x = grad @ weights
        if needs[1] or needs[2]:
            d_a, d_reads = (grad.t() @ tokens).tensor_split([len(a)])
    else:
        factors = keep_factors(keep, dtype)
        if needs[0]:
            d_x = (d_hidden @ down).mul_(factors)
            if routing is not None:
                d_x.addmm_(routing[0], cast(routing[1], dtype))
        if needs[1]:
            d_a = d_hidden.t() @ apply_factors(tokens, factors)
        if needs[2] and routing is not None:
            d_reads = routing[0].t() @ tokens
    return (
        cast(d_x, x.dtype).view(x.shape) if d_x is not None else None,
        cast(d_a, a.dtype) if needs[1] and d_a is not None else None,
        cast(d_reads, a.dtype) if needs[2] and d_reads is not None else None,
    )


def _kernels(x: torch.Tensor) -> ModuleType:
    """The module whose gating is in force: plain operators, or Triton's kernels."""
    if x.is_cuda and fused_paths().triton and not torch.compiler.is_compiling():
        from . import triton_gating

        return triton_gating
    return gating


def _autocasts(x: torch.Tensor) -> bool:
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(kind):
        return False
    return torch.is_autocast_enabled(kind)


def _plain_dtypes(x: torch.Tensor) -> AbstractContextManager[Any]:
    """Autocast off, where it is on: the dtypes are chosen here."""
    return torch.autocast(x.device.type, enabled=False) if _autocasts(x) else nullcontext()
