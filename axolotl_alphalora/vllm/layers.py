"""Where an adapter's modules are in vLLM's model, and giving those layers their experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .routed import Projection, RoutedExperts, RoutedMethod
from .saved import SavedAdapter, Weights

SHOWN = 3
"""Modules that a message names."""
ELSEWHERE = "Serve it with transformers (example_configs/serve.py)"


@dataclass(frozen=True)
class Kinds:
    """vLLM's classes of linear layers.

    Attributes:
        base: What they all are.
        column: Divides its output features among processes.
        merged: Such a one that holds several projections.
        qkv: Such a one for attention, whose keys and values several processes may have.
        row: Divides its input features, and sums the outputs.
        replicated: Divides nothing.
    """

    base: Any
    column: Any
    merged: Any
    qkv: Any
    row: Any
    replicated: Any

    def known(self) -> set[Any]:
        """Kinds whose forward pass calls `quant_method.apply`, and whose division is tested."""
        return {self.column, self.merged, self.qkv, self.row, self.replicated}


@dataclass(frozen=True)
class Part:
    """A module of the base in a layer of vLLM's.

    Attributes:
        module: The adapter's module; None if it has no experts.
        rows: Those of its output features that this process has, in the layer's order.
        out_features: All of its output features.
    """

    module: str | None
    rows: tuple[slice, ...]
    out_features: int


@dataclass(frozen=True)
class Place:
    """A layer of vLLM's model with modules of the adapter.

    Attributes:
        name: The layer's name.
        layer: The layer.
        parts: The modules of the base that it holds.
        divided: Whether its input features are divided among processes.
    """

    name: str
    layer: Any
    parts: tuple[Part, ...]
    divided: bool

    @property
    def adapted(self) -> list[tuple[str, Part]]:
        """The adapter's modules, with their parts."""
        return [(part.module, part) for part in self.parts if part.module is not None]


def find_places(
    model: nn.Module, adapter: SavedAdapter, weights: Weights, kinds: Kinds, mla: bool = False
) -> list[Place]:
    """Find the layers of vLLM's model that hold the adapter's modules.

    Args:
        model: The model, with or without its weights.
        adapter: The adapter.
        weights: Its weights, of which only the shapes are read.
        kinds: vLLM's classes.
        mla: Whether attention reads weights of a projection without calling it.

    Raises:
        ValueError: If a module is not found, cannot have experts there, or has another shape, or
            the base has another depth; names the first of them and says why.
    """
    names = _renamed(model, adapter.planned)
    _check_depth(model, adapter)
    packed: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", None) or {}
    uncalled, rotated = _uncalled(model, mla), _rotated(model)
    places, left = [], set(adapter.planned)
    for name, layer in model.named_modules():
        if not isinstance(layer, kinds.base):
            continue
        stem, _, leaf = name.rpartition(".")
        dot = "." if stem else ""
        originals = [f"{stem}{dot}{each}" for each in packed.get(leaf, (leaf,))]
        modules = [names.get(original) for original in originals]
        if not any(modules):
            continue
        _check_layer(name, layer, kinds, layer in uncalled)
        _check_order(name, layer, [module for module in modules if module], kinds, rotated)
        divided = isinstance(layer, kinds.row) and layer.tp_size > 1
        place = Place(name, layer, parts_of(name, layer, modules, kinds), divided)
        _check_shapes(place, adapter, weights)
        places.append(place)
        left -= {module for module in modules if module}
    if left:
        raise ValueError(_not_found(sorted(left), model))
    return places


def parts_of(
    name: str, layer: Any, modules: Sequence[str | None], kinds: Kinds
) -> tuple[Part, ...]:
    """Which rows of each module of the base a process has.

    Args:
        name: The layer's name.
        layer: A layer of vLLM's.
        modules: The adapter's modules of those that it holds, None for each that has no experts.
        kinds: vLLM's classes.

    Raises:
        ValueError: If the layer has neither a part for each module, nor one module in all.
    """
    if layer.tp_size == 1 or isinstance(layer, (kinds.row, kinds.replicated)):
        local = list(getattr(layer, "output_sizes", None) or [layer.output_size])
        whole, shards = local, [0] * len(local)
    else:
        local = list(layer.output_partition_sizes)
        copies = [1] * len(local)
        if isinstance(layer, kinds.qkv):
            copies[1:] = [layer.num_kv_head_replicas] * len(copies[1:])
        whole = [n * layer.tp_size // copy for n, copy in zip(local, copies, strict=True)]
        shards = [layer.tp_rank // copy for copy in copies]
    rows = [slice(n * shard, n * (shard + 1)) for n, shard in zip(local, shards, strict=True)]
    if len(modules) == len(rows):
        sizes = zip(modules, rows, whole, strict=True)
        return tuple(Part(module, (each,), size) for module, each, size in sizes)
    if len(modules) > 1:
        raise ValueError(
            f"{name}: vLLM holds {len(modules)} modules of the base there in {len(rows)} parts, "
            f"and which is where is not known. {ELSEWHERE}"
        )
    starts = [sum(whole[:i]) for i in range(len(whole))]  # one module that is divided part by part
    moved = [slice(n + e.start, n + e.stop) for n, e in zip(starts, rows, strict=True)]
    return (Part(modules[0], tuple(moved), sum(whole)),)


def attach(
    places: Iterable[Place],
    adapter: SavedAdapter,
    weights: Weights,
    dtype: torch.dtype,
    device: torch.device,
    reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Give the layers their experts, whose weights become buffers that are not saved.

    Args:
        places: Where.
        adapter: The adapter.
        weights: Its weights.
        dtype: The model's.
        device: The model's.
        reduce: Sums a tensor over the processes of tensor parallelism.
    """
    for place in places:
        layer = place.layer
        projections = []
        for part in place.parts:
            size = sum(rows.stop - rows.start for rows in part.rows)
            module = part.module
            shape = (adapter.planned[module], adapter.ranks[module]) if module else (0, 0)
            projections.append(Projection(size, *shape, adapter.mixture))
        columns = _share(projections[0], layer) if place.divided else None
        experts = RoutedExperts(projections, reduce if place.divided else None, columns)
        tensors = [
            {
                name: _own(weights.tensor(module, name), name, part, place, adapter)
                for name in adapter.shapes(module, 1, 1)
            }
            for module, part in place.adapted
        ]
        scalings = [adapter.scaling(module) for module, _ in place.adapted]
        for name, buffer in experts.buffers(tensors, scalings).items():
            layer.register_buffer(name, buffer.to(device, dtype), persistent=False)
        layer.requires_unquantized_input = True
        layer.quant_method = RoutedMethod(layer.quant_method, experts)


def _share(projection: Projection, layer: Any) -> slice:
    """The part of A x that a process multiplies with B, so that the work is done once."""
    width = projection.planned * projection.rank
    return slice(
        width * layer.tp_rank // layer.tp_size, width * (layer.tp_rank + 1) // layer.tp_size
    )


def _own(
    tensor: torch.Tensor, name: str, part: Part, place: Place, adapter: SavedAdapter
) -> torch.Tensor:
    """What this process needs of a tensor: its rows of B, its columns of what multiplies x."""
    if name == "alphalora_B":
        return torch.cat([tensor[rows] for rows in part.rows])
    reads_x = name != "alphalora_router" or adapter.mixture.router_rank is None
    if not (place.divided and reads_x):
        return tensor
    rank, size = place.layer.tp_rank, place.layer.input_size // place.layer.tp_size
    return tensor[:, rank * size : (rank + 1) * size]


def _renamed(model: nn.Module, modules: Iterable[str]) -> dict[str, str]:
    """Name in vLLM's model, were it not fused, to the module's name in the base's own."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    if mapper is not None and hasattr(mapper, "get_rename_mapper"):
        mapper = mapper.get_rename_mapper()  # without what is fused
    found = {}
    for module in modules:
        # Rules may be for the end of a weight's name.
        mapped = f"{module}.weight" if mapper is None else mapper.map_name(f"{module}.weight")
        if mapped is not None:
            found[mapped.removesuffix(".weight")] = module
    return found


def _check_depth(model: nn.Module, adapter: SavedAdapter) -> None:
    for theirs, ours in _renamed(model, adapter.base_blocks).items():
        try:
            blocks: Any = model.get_submodule(theirs)
        except AttributeError:
            continue  # its modules will not be found either
        length = adapter.base_blocks[ours]
        if isinstance(blocks, nn.ModuleList) and len(blocks) != length:
            raise ValueError(
                f"The adapter was trained on a base with {length} blocks in {ours}, and this one "
                f"has {len(blocks)}: name its own base with --model"
            )


def _uncalled(model: nn.Module, mla: bool) -> set[Any]:
    """Layers whose weight vLLM 0.32 reads without calling them, as far as they are known."""
    found: set[Any] = set()
    for name, module in model.named_modules():
        if mla and name.endswith("kv_b_proj"):
            found.add(module)
        if getattr(module, "_fse_fuse_gate", False):  # of fused experts: two gates, one product
            found |= {module.gate, module.shared_expert_gate}
    return found


def _check_layer(name: str, layer: Any, kinds: Kinds, uncalled: bool) -> None:
    if uncalled:
        raise ValueError(
            f"{name}: vLLM reads its weight without calling it, so that experts there would be "
            "left out; it cannot serve this adapter"
        )
    if type(layer).forward not in {getattr(kind, "forward", None) for kind in kinds.known()}:
        raise ValueError(
            f"{name} is a {type(layer).__name__}, which may compute its output without its "
            "quant_method, where the experts are; it is not served"
        )
    if layer.tp_size > 1 and type(layer) not in kinds.known():
        raise ValueError(
            f"{name} is a {type(layer).__name__}, and how that is divided among processes was not "
            "tested: use --tensor-parallel-size 1"
        )


def _rotated(model: nn.Module) -> bool:
    """Whether vLLM reorders rows of queries and keys as it loads them, as for Llama 4."""
    return any(hasattr(module, "permute_qk_weight_for_rotary") for module in model.modules())


def _check_order(
    name: str, layer: Any, modules: Sequence[str], kinds: Kinds, rotated: bool
) -> None:
    """Refuse layers whose rows vLLM has in another order than the base, so than the experts' B."""
    leaves = {module.rpartition(".")[2] for module in modules}
    by_head = isinstance(layer, kinds.qkv) and leaves == {"query_key_value"}
    if by_head or (rotated and leaves & {"q_proj", "k_proj"}):
        raise ValueError(
            f"{name}: vLLM may hold the rows of {modules[0]} in another order than the base does, "
            f"so that experts would be added to other features. {ELSEWHERE}"
        )


def _check_shapes(place: Place, adapter: SavedAdapter, weights: Weights) -> None:
    layer = place.layer
    for module, part in place.adapted:
        for name, wanted in adapter.shapes(module, layer.input_size, part.out_features).items():
            found = weights.shape(module, name)
            if found is None:
                raise ValueError(f"{module}: the adapter's weights lack {name}: save it again")
            if found != wanted:
                raise ValueError(
                    f"{module}: the adapter's {name} is {found}, and on this base it would be "
                    f"{wanted} ({layer.input_size} inputs, {part.out_features} outputs): serve "
                    "the base that it was trained on"
                )


def _not_found(left: Sequence[str], model: nn.Module) -> str:
    """Which modules vLLM's model has no place for, and why that may be."""
    shown = ", ".join(left[:SHOWN]) + (", ..." if len(left) > SHOWN else "")
    if any(".experts." in f"{name}." for name in left):
        why = "vLLM computes a model's own experts in one fused layer, which cannot have others"
    elif any(name.endswith("lm_head") for name in left):
        why = "vLLM's lm_head is no linear layer"
    else:
        why = "the base is another one, or vLLM writes this family in other layers"
    return (
        f"{len(left)} of the adapter's modules are not linear layers of vLLM's "
        f"{type(model).__name__} ({shown}): {why}. {ELSEWHERE}"
    )
