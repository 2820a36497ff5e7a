"""What the experts of a saved adapter have learnt, module by module, from its files alone.

Updates are known by their factors; no out x in matrix is formed. Notation as in
`axolotl_alphalora.adapter.functional`: N experts of rank r stacked, `A` is [N*r, in] and
`B` is [out, N*r]; expert e's update is `dW_e = s * B_e A_e`. Experts that are cut count as
their parts, and those that share an A have a copy of it each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..blocks import group_by_block, kind_of, part_of
from ..files import ADAPTER_CONFIG, KEY_PREFIX
from ..threads import one_thread
from .files import AdapterConfig, open_weights, read_config

if TYPE_CHECKING:
    from ..progress import Progress


def singular_values(a: Tensor, b: Tensor, experts: int, scaling: float) -> Tensor:
    """Return the singular values of every expert's update, the largest first.

    With `A_e^T = Q R_A` and `B_e = P R_B` they are those of `R_B R_A^T`.

    Args:
        a: [N*r, in], fp32.
        b: [out, N*r], fp32.
        experts: N.
        scaling: s.

    Returns:
        [N, min(r, in, out)], fp32.
    """
    down = torch.linalg.qr(a.unflatten(0, (experts, -1)).mT, mode="r").R  # [N, r or in, r]
    stacked = b.unflatten(1, (experts, -1)).permute(1, 0, 2)  # [N, out, r]
    up = torch.linalg.qr(stacked, mode="r").R
    return torch.linalg.svdvals(up @ down.mT) * scaling


def cosines(a: Tensor, b: Tensor, experts: int) -> Tensor:
    """Return the cosines between the updates of all pairs of experts, as vectors of entries.

    The inner product of two updates is the sum of an r x r block of `(B^T B) * (A A^T)`.

    Args:
        a: [N*r, in], fp32.
        b: [out, N*r], fp32.
        experts: N.

    Returns:
        [N, N], fp32; NaN in the rows and columns of experts whose update is zero.
    """
    products = (b.T @ b) * (a @ a.T)  # [N*r, N*r]
    inner = products.unflatten(0, (experts, -1)).unflatten(2, (experts, -1)).sum((1, 3))
    lengths = inner.diagonal().clamp_min(0).sqrt()
    cosine = inner / (lengths.unsqueeze(0) * lengths.unsqueeze(1))
    cosine = cosine.clamp(-1, 1)
    known = lengths > 0
    return torch.where(known.unsqueeze(0) & known.unsqueeze(1), cosine, math.nan)


def effective_rank(values: Sequence[float]) -> float:
    """Return the effective rank (Roy and Vetterli 2007): exp of the entropy of the normalised
    singular values.

    Returns:
        Between 1 and the number of values that are not zero; 0 if all are.
    """
    total = math.fsum(values)
    if total == 0:
        return 0.0
    shares = [value / total for value in values]
    return math.exp(entropy(shares))


def entropy(shares: Sequence[float]) -> float:
    """Return the entropy of shares that add up to 1, in nats."""
    return -math.fsum(share * math.log(share) for share in shares if share > 0)


_KINDS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Expert:
    """The update `dW = s * B A` of one expert.

    Attributes:
        norm: Frobenius norm; 0 for an expert whose B was never trained.
        effective_rank: exp of the entropy of the normalised singular values, from 1 to the rank;
            0 if the update is zero.
        singular_values: The largest first, at most as many as the rank.
    """

    norm: float
    effective_rank: float
    singular_values: tuple[float, ...]


@dataclass(frozen=True)
class ModuleExperts:
    """The experts of one linear layer.

    Attributes:
        name: The layer's name in the base model.
        in_features: Its input features.
        out_features: Its output features.
        rank: Rank of each expert.
        scaling: Factor on the output of an expert, which the statistics include.
        experts: The experts, one at least.
        cosine: N rows of the cosines between the experts' updates, None with one that is zero.
        parameters: Parameters of the experts and the router.
    """

    name: str
    in_features: int
    out_features: int
    rank: int
    scaling: float
    experts: tuple[Expert, ...]
    cosine: tuple[tuple[float | None, ...], ...]
    parameters: int

    @property
    def routed(self) -> bool:
        """Whether there is a router: a single expert has none."""
        return len(self.experts) > 1

    @property
    def mean_norm(self) -> float:
        """Mean norm of the experts."""
        return fmean(expert.norm for expert in self.experts)

    @property
    def relative_norms(self) -> tuple[float | None, ...]:
        """Each expert's norm in units of their mean; None where all are zero."""
        mean = self.mean_norm
        return tuple(expert.norm / mean if mean > 0 else None for expert in self.experts)

    @property
    def mean_effective_rank(self) -> float:
        """Mean effective rank of the experts."""
        return fmean(expert.effective_rank for expert in self.experts)

    @property
    def pairs(self) -> dict[tuple[int, int], float]:
        """Absolute cosines of the pairs of experts of which neither is zero."""
        found = {}
        for one, other in combinations(range(len(self.experts)), 2):
            cosine = self.cosine[one][other]
            if cosine is not None:
                found[one, other] = abs(cosine)
        return found

    @property
    def redundancy(self) -> float | None:
        """Mean absolute cosine of the pairs; None without a pair."""
        pairs = self.pairs
        return fmean(pairs.values()) if pairs else None

    @property
    def max_cosine(self) -> float | None:
        """Largest absolute cosine of the pairs; None without a pair."""
        return max(self.pairs.values(), default=None)

    @property
    def closest(self) -> tuple[int, int] | None:
        """The pair with the largest absolute cosine; None without a pair."""
        pairs = self.pairs
        return max(pairs, key=lambda pair: pairs[pair]) if pairs else None


def read_experts(
    adapter_dir: str | Path,
    progress: Progress | None = None,
) -> list[ModuleExperts]:
    """Read the experts of a saved adapter, one module at a time and in fp32, on the CPU.

    Args:
        adapter_dir: Its directory, with `adapter_config.json` and `adapter_model.safetensors`.
        progress: Takes the modules' names; what it returns is called after each.

    Returns:
        The modules that have experts: blocks in natural order, attention before the MLP.

    Raises:
        ValueError: If it is no AlphaLoRA adapter, a file is missing or damaged, or the weights are
            not those of the configuration or not finite; names the file or the module.
    """
    config = read_config(adapter_dir)
    with open_weights(adapter_dir) as file:
        keys = set(file.keys())
        modules = _modules(keys, config, Path(adapter_dir))
        step = progress(list(modules)) if progress else None
        found = []
        for name, prefix in modules.items():
            with one_thread():
                found.append(_read(file, keys, name, prefix, config))
            if step is not None:
                step(name)
        return found


def in_depth_order(modules: Mapping[str, Any]) -> Iterator[str]:
    """Yield module names, blocks in natural order and the layers of a block as they are used."""
    for members in group_by_block(modules).values():
        yield from sorted(members, key=_place)


def _place(name: str) -> tuple[bool, int]:
    """Sort key within a block; layers of other names keep their order, after the usual ones."""
    stem = kind_of(name).rpartition(".")[2].removesuffix("_proj")
    return part_of(name) == "mlp", _KINDS.index(stem) if stem in _KINDS else len(_KINDS)


def _modules(keys: set[str], config: AdapterConfig, folder: Path) -> dict[str, str]:
    """Names of the modules with experts in depth order, and what their keys begin with."""
    found = {}
    for key in sorted(keys):
        prefix, _, part = key.rpartition(".")
        if part == "alphalora_A":
            found[prefix.removeprefix(KEY_PREFIX)] = prefix
    if config.num_experts is not None:
        counts = {name for name, count in config.num_experts.items() if count}
        if unknown := sorted(counts ^ found.keys()):
            where = "weights" if unknown[0] in counts else ADAPTER_CONFIG
            raise ValueError(
                f"{folder}: the {where} lack {unknown[0]}, so its two files are not of one "
                "adapter: use another checkpoint, or save it again"
            )
    if not found:
        raise ValueError(f"{folder}: the weights hold no experts: save the adapter again")
    return {name: found[name] for name in in_depth_order(found)}


PARTS = ("alphalora_A", "alphalora_B", "alphalora_router", "alphalora_router_down")
"""The last part of the keys of a module's weights."""


def _read(
    file: Any, keys: set[str], name: str, prefix: str, config: AdapterConfig
) -> ModuleExperts:
    if f"{prefix}.alphalora_B" not in keys:
        raise ValueError(f"{name}: alphalora_B is missing: save the adapter again")
    there = [part for part in PARTS if f"{prefix}.{part}" in keys]
    tensors = {part: file.get_tensor(f"{prefix}.{part}") for part in there}
    shapes = {part: tuple(tensor.shape) for part, tensor in tensors.items()}
    mixture, rank = config.mixture, config.rank_of(name)
    in_features, out_features = shapes["alphalora_A"][1], shapes["alphalora_B"][0]
    wanted = (
        shapes["alphalora_B"][1] // rank if config.num_experts is None else config.num_experts[name]
    )
    right = mixture.tensors(in_features, out_features, wanted, rank)
    if shapes != right:
        found = ", ".join(f"{part} {shapes.get(part)}" for part in PARTS if part in shapes | right)
        raise ValueError(
            f"{name}: {found} are not those of {wanted} experts of rank {rank}, as "
            f"{ADAPTER_CONFIG} says: use another checkpoint, or save the adapter again"
        )
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ValueError(f"{name}: its weights are not finite, so training has diverged")
    number, scaling = mixture.experts(wanted), config.scaling(rank)
    a, b = tensors["alphalora_A"].float(), tensors["alphalora_B"].float()
    a = a.repeat(b.shape[1] // len(a), 1)
    experts = []
    for values in singular_values(a, b, number, scaling).tolist():
        experts.append(Expert(math.hypot(*values), effective_rank(values), tuple(values)))
    rows = cosines(a, b, number).tolist()
    return ModuleExperts(
        name=name,
        in_features=in_features,
        out_features=out_features,
        rank=rank // mixture.segments,
        scaling=scaling,
        experts=tuple(experts),
        cosine=tuple(tuple(None if math.isnan(x) else x for x in row) for row in rows),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
    )
