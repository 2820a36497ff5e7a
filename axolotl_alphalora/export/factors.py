"""One low-rank update instead of a routed mixture, computed on the factors.

A module's mixture is `s * B h(x)` with `h(x) = g(x) ⊙ A x`, A [N*r, in], B [out, N*r] and
gates g(x), each of which stands for the r rows of its expert. (Experts that share their A stand for
copies of it.) What replaces h is `M f(x)`, linear in the plain hidden values and in what the
router reads, `f(x) = [A x; R x]` with F values: see
`Moments`. The full [out, in] matrix is never formed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..adapter import AlphaLoraLayer, adapted_layers
from ..evaluation import Moments
from ..progress import Progress
from ..threads import one_thread

_RIDGE = 1e-3


@dataclass(frozen=True)
class Factors:
    """A low-rank update, fp64.

    Attributes:
        a: [R, in].
        b: [out, R].
    """

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """Inner dimension of the product."""
        return self.a.shape[0]


def mean_mixing(moments: Moments) -> Tensor:
    """Constant gates: M = [diag(ḡ), 0], [N*r, F], each gate r times; of copies of A, as many."""
    mixing = torch.zeros_like(moments.hf)
    rank, rows = len(mixing) // len(moments.gates), torch.arange(len(mixing))
    mixing[rows, rows % moments.hidden] = moments.mean_gates.repeat_interleave(rank)
    return mixing


def fitted_mixing(moments: Moments) -> Tensor:
    """The M that minimises `sum_t |h_t - M f_t|^2` over the tokens seen: [N*r, F].

    A slight ridge pulls it towards the mean gates, which is where it stays for what no token
    reached.
    """
    start = mean_mixing(moments)
    if moments.tokens == 0:
        return start
    diagonal = moments.ff.diagonal()
    # The absolute part keeps features that are always zero invertible.
    ridge = torch.diag(_RIDGE * diagonal + 1e-12 * diagonal.mean() + 1e-300)
    missing = moments.hf - start @ moments.ff
    return start + torch.linalg.solve(moments.ff + ridge, missing.T).T


def mixed(a: Tensor, b: Tensor, read: Tensor, scaling: float, mixing: Tensor) -> Factors:
    """Replace the gates by a linear map of what they depend on: `W = s * B M [A; R]`.

    Args:
        a: [N*r, in], or fewer rows, shared.
        b: [out, N*r].
        read: R, the router or the lower part of it, [F - rows of A, in].
        scaling: s.
        mixing: M, [N*r, F].

    Returns:
        The update, of rank N*r, or as many of the F as M uses if those are fewer.
    """
    rows, b = torch.cat([a, read]).double(), b.double() * scaling
    used = _fewer(mixing)
    if used is None:
        return Factors(mixing @ rows, b)
    return Factors(rows[used], b @ mixing[:, used])


def second_moment(moments: Moments, mixing: Tensor) -> Tensor:
    """Sum over tokens of `A'x (A'x)ᵀ`, where A' is that of `mixed`."""
    used = _fewer(mixing)
    if used is None:
        return mixing @ moments.ff @ mixing.T
    return moments.ff[used][:, used]


def _fewer(mixing: Tensor) -> Tensor | None:
    """Which columns of M are not zero, if those are fewer than its rows."""
    used = mixing.any(0).nonzero().flatten()
    return used if len(used) < len(mixing) else None


def compress(factors: Factors, rank: int, second_moment: Tensor | None = None) -> Factors:
    """Return the nearest update of a lower rank, by an SVD on the factors.

    Nearest in the output on the tokens seen where their second moment is given (reduced-rank
    regression), otherwise as a matrix (Eckart-Young).

    Args:
        factors: The update, of rank R.
        rank: At most this many directions are kept.
        second_moment: Sum over tokens of `A'x (A'x)ᵀ`, [R, R].

    Returns:
        The same factors if they have no more.
    """
    if factors.rank <= rank:
        return factors
    q_b, r_b = torch.linalg.qr(factors.b)
    if second_moment is None:
        q_a, r_a = torch.linalg.qr(factors.a.T)
        u, values, vh = torch.linalg.svd(r_b @ r_a.T)
        root = values[:rank].sqrt()
        return Factors((root[:, None] * vh[:rank]) @ q_a.T, q_b @ (u[:, :rank] * root))
    values, vectors = torch.linalg.eigh(second_moment)
    u = torch.linalg.svd(r_b @ vectors * values.clamp_min(0).sqrt())[0][:, :rank]
    return Factors(u.T @ r_b @ factors.a, q_b @ u)


def pad(factors: Factors, rank: int) -> Factors:
    """Raise an update to a rank of at least its own, with zeros, which changes nothing."""
    more = rank - factors.rank
    return Factors(
        torch.nn.functional.pad(factors.a, (0, 0, 0, more)),
        torch.nn.functional.pad(factors.b, (0, more)),
    )


Method = Literal["least-squares", "mean-gate"]
_MIXINGS: Mapping[Method, Callable[[Moments], Tensor]] = {
    "least-squares": fitted_mixing,
    "mean-gate": mean_mixing,
}
METHODS: tuple[Method, ...] = tuple(_MIXINGS)
DEFAULT_METHOD: Method = "least-squares"


def build(
    model: nn.Module,
    moments: Mapping[str, Moments],
    *,
    method: Method = DEFAULT_METHOD,
    rank: int | None = None,
    same_rank: bool = False,
    progress: Progress | None = None,
) -> dict[str, Factors]:
    """Replace the mixture of every module by one update.

    Args:
        model: The model with the adapter `default`.
        moments: Module name to what its inputs were like, for every module with a router.
        method: `mean-gate` weighs the experts with their mean gates; `least-squares` fits the
            routed output. Modules with one expert are taken as they are.
        rank: Compress modules of a higher rank to this one.
        same_rank: Pad all modules with zeros to the highest rank.
        progress: Takes the modules' names; what it returns is called after each.

    Returns:
        Exact module name to its update, in the model's order.
    """
    updates: dict[str, Factors] = {}
    layers = adapted_layers(model, "default")
    step = progress([layer.module_name for layer in layers]) if progress else None
    for layer in layers:
        with one_thread():
            updates[layer.module_name] = _replaced(layer, moments, method, rank)
        if step is not None:
            step(layer.module_name)
    if same_rank:
        most = max(update.rank for update in updates.values())
        updates = {name: pad(update, most) for name, update in updates.items()}
    return updates


def _replaced(
    layer: AlphaLoraLayer, moments: Mapping[str, Moments], method: Method, rank: int | None
) -> Factors:
    a, b, router, down = (
        None if tensor is None else tensor.detach().cpu()
        for tensor in (layer.part(name, "default") for name in layer.adapter_layer_names)
    )
    assert a is not None and b is not None
    scaling = layer.scaling["default"]
    second: Tensor | None = None
    if router is None:
        update = Factors(a.double(), b.double() * scaling)
    else:
        seen = moments[layer.module_name]
        mixing = _MIXINGS[method](seen)
        update = mixed(a, b, router if down is None else down, scaling, mixing)
        if seen.tokens:
            second = second_moment(seen, mixing)
    return update if rank is None else compress(update, rank, second)
