"""Experts that start from a plain LoRA, such that the adapted model computes what it did with it.

`copy` gives every expert the LoRA's update: gates that sum to 1 weigh it to the same. `svd`
shares the update's singular directions out over N experts and scales each part with N; the router
(of a router `V U` its V) starts at zero, so that all gates are 1 / N where every token uses all
experts. Experts that are cut count as their parts; a shared A can be that of the LoRA, and no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..hosts.peft import BaseTunerLayer, ModulesToSaveWrapper, in_out_features
from ..hosts.torch import is_partitioned
from .config import AlphaLoraConfig
from .layer import AlphaLoraLayer
from .saved_lora import SavedLora, read_lora


@dataclass(frozen=True)
class WarmStart:
    """A saved LoRA and how the experts of each of its modules start from it.

    Attributes:
        lora: The LoRA.
        split: `"copy"` or `"svd"`.
    """

    lora: SavedLora
    split: str

    @classmethod
    def of(cls, config: AlphaLoraConfig) -> WarmStart | None:
        """What a config asks for; None if it starts from no LoRA.

        Raises:
            ValueError: If what it names is no plain LoRA; see [`read_lora`].
        """
        return cls(read_lora(config.init_from), config.init_split) if config.init_from else None

    def check(self, config: AlphaLoraConfig, sizes: Mapping[str, tuple[int, int]]) -> None:
        """Check that experts can compute what the LoRA does.

        Args:
            config: The new adapter's configuration, with its counts resolved.
            sizes: Exact name to (in, out) of every module with experts.

        Raises:
            ValueError: If the LoRA adapts a module that gets no experts or has another shape, the
                ranks are too low, the routing would not preserve its function, or it holds modules
                that the new adapter does not save; names the first module and the setting.
        """
        counts = config.num_experts
        assert isinstance(counts, dict)
        for name in self.lora.modules:
            if not counts.get(name):
                reason = "gets no experts" if name in counts else "is no target, or does not exist,"
                raise self._error(
                    f"adapts {name}, which {reason} here, so that its update would be lost. Name "
                    "it in target_modules (lora_target_modules) and give it an expert"
                )
            found = self.lora.modules[name][1:]
            if found != sizes[name]:
                raise self._error(
                    "was trained on another base model: in it, {} has {} inputs and {} outputs, "
                    "and here {} and {}".format(name, *found, *sizes[name])
                )
        self._check_routing(config, counts)
        self._check_ranks(config, counts)
        self._check_whole(config.modules_to_save or ())

    def check_model(self, config: AlphaLoraConfig, model: nn.Module) -> None:
        """Check the same against a base model, and the shapes of the modules held in full.

        Raises:
            ValueError: As `check` does, or if a parameter of a whole module does not fit.
        """
        assert isinstance(config.num_experts, dict)
        found = dict(model.named_modules())
        targets = [name for name, count in config.num_experts.items() if count]
        self.check(config, {name: _sizes(found[name]) for name in targets})
        for name, shape in self.lora.whole.items():
            parameter = _parameter(model, name)
            if is_partitioned(parameter):
                raise self._error(
                    f"holds {name} in full, which cannot be copied into weights that ZeRO-3 shards"
                )
            if parameter is None or parameter.shape != shape:
                here = "does not have it" if parameter is None else f"has {tuple(parameter.shape)}"
                raise self._error(f"holds {name} of shape {shape}, and the base model {here}")

    @torch.no_grad()
    def apply(self, model: nn.Module, adapter_name: str) -> None:
        """Copy the LoRA into an adapter's layers and whole modules; they passed `check_model`.

        Weights on the meta device are left alone: another process fills them in.
        """
        for name, module in model.named_modules():
            if isinstance(module, AlphaLoraLayer) and module.module_name in self.lora.modules:
                self._start(module, adapter_name)
            if isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save:
                trained = module.modules_to_save[adapter_name]
                for key in self.lora.whole:
                    if key.startswith(f"{name}."):
                        target = _parameter(trained, key.removeprefix(f"{name}."))
                        assert target is not None
                        target.copy_(self.lora.tensor(key))

    def _start(self, layer: AlphaLoraLayer, adapter_name: str) -> None:
        experts, rank = layer.num_experts[adapter_name], layer.r[adapter_name]
        a, b = self.lora.factors(layer.module_name)
        if self.split == "svd" or a.shape[0] > rank:
            a, b = _directions(a, b)
        b = b * (self.lora.scaling(layer.module_name) / layer.scaling[adapter_name])
        # The rest of A stays as it was drawn, with B at zero: what training can add.
        all_a = layer.alphalora_A[adapter_name].data.unflatten(0, (-1, rank))
        all_b = layer.alphalora_B[adapter_name].data.zero_().unflatten(1, (experts, rank))
        for expert in range(experts):
            part_a, part_b = a, b
            if self.split == "svd":
                # Interleaved, so that every expert gets large and small directions.
                part_a, part_b = a[expert::experts], b[:, expert::experts] * experts
            all_a[expert % len(all_a), : part_a.shape[0]].copy_(part_a)
            all_b[:, expert, : part_a.shape[0]].copy_(part_b)
        if self.split == "svd" and adapter_name in layer.alphalora_router:
            layer.alphalora_router[adapter_name].data.zero_()

    def _check_routing(self, config: AlphaLoraConfig, counts: Mapping[str, int]) -> None:
        mixture = config.mixture
        if mixture.share_a and (mixture.segments > 1 or self.split == "svd"):
            raise self._error(
                "has one A, which experts with share_a: true can start from only where they are "
                "whole copies. Set init_split: copy and segments: 1, or share_a: false"
            )
        by_count = sorted(self.lora.modules, key=lambda module: counts[module], reverse=True)
        for name in by_count:
            count, active = counts[name], mixture.active(counts[name])
            if self.split == "copy" and active == 1 < count:
                raise self._error(
                    f"adapts {name}, which has {count} experts here, and with top_k: "
                    f"{config.top_k} a token uses one, which is weighed with its probability, so "
                    "that a copy would count for less. Set top_k to 2 or more"
                )
            if self.split == "svd" and active < mixture.experts(count):
                raise self._error(
                    f"cannot be split over the {count} experts of {name}, of which a token uses "
                    f"{active // mixture.segments}: the parts make up the LoRA only together. Set "
                    f"top_k to {count} or more, or init_split: copy"
                )

    def _check_ranks(self, config: AlphaLoraConfig, counts: Mapping[str, int]) -> None:
        needed, segments = {}, config.segments
        for name, (rank, _, _) in self.lora.modules.items():
            parts = config.mixture.experts(counts[name]) if self.split == "svd" else 1
            room = parts * (config.rank_of(name) // segments)
            factors = self.lora.factors(name)
            if rank > room:
                rank = _directions(*factors)[0].shape[0]
                if rank > room:
                    needed[name] = -(-rank // parts) * segments
        if needed:
            name = max(needed, key=lambda module: needed[module])
            raise self._error(
                f"needs experts of rank {needed[name]} in {name}, which have rank "
                f"{config.rank_of(name)} here"
                + (f", cut into {segments}" if segments > 1 else "")
                + f". Set r (lora_r) to {needed[name]} or more"
            )

    def _check_whole(self, kept: Iterable[str]) -> None:
        for name in self.lora.whole:
            parts = name.split(".")
            modules = [".".join(parts[:end]) for end in range(1, len(parts))]
            if not any(module.endswith(entry) for module in modules for entry in kept):
                raise self._error(
                    f"holds {name} in full, which would be lost. Add {modules[-1]} to "
                    "modules_to_save (lora_modules_to_save)"
                )

    def _error(self, text: str) -> ValueError:
        return ValueError(f"init_from: the LoRA in {self.lora.folder} {text}.")


def _directions(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The singular directions of `B A` above round-off, the largest first.

    Args:
        a: [rank, in].
        b: [out, rank].

    Returns:
        A [k, in] and B [out, k] in fp32 with the same product, each with the root of the singular
        values; k is the product's numerical rank.
    """
    b_basis, b_rest = torch.linalg.qr(b.double())
    a_basis, a_rest = torch.linalg.qr(a.double().T)
    left, values, right = torch.linalg.svd(b_rest @ a_rest.T)
    # The factors are fp32 at best; the decomposition is that of a rank x rank matrix in fp64.
    limit = values[0] * len(values) * torch.finfo(torch.float32).eps
    number = int((values > limit).sum())
    roots = values[:number].sqrt()
    new_a = roots[:, None] * (right[:number] @ a_basis.T)
    return new_a.float(), (b_basis @ (left[:, :number] * roots)).float()


def _sizes(module: nn.Module) -> tuple[int, int]:
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    in_features, out_features = in_out_features(base)
    assert in_features is not None and out_features is not None
    return in_features, out_features


def _parameter(model: nn.Module, name: str) -> torch.Tensor | None:
    """A parameter or buffer of the base model by its name, whatever wraps its module."""
    module: nn.Module | None = model
    *path, leaf = name.split(".")
    for part in path:
        module = getattr(module, part, None)
        if isinstance(module, ModulesToSaveWrapper):
            module = module.original_module
    return getattr(module, leaf, None)
