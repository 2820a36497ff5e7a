"""One linear layer with a mixture of LoRA experts and its router."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..hosts.accelerate import computes_on
from ..hosts.peft import (
    BaseTunerLayer,
    in_out_features,
    quantization_extra_repr,
    resolve_quantization_backend,
)
from ..hosts.torch import has_hooks, is_watched
from .balance import BalanceTerm, LoadBalancer
from .batch import Tokens
from .config import AlphaLoraConfig
from .functional import (
    cast,
    copies_of,
    gate,
    load_balancing_loss,
    mix_experts,
    route,
    router_logits,
    weigh,
)
from .fused import add_experts, fused_paths
from .loss_scale import attach_loss
from .placing import kept_frozen
from .usage import router_sums

FUSED_DEVICES = ("cpu", "cuda", "meta")
FRESH_OUTPUT = (
    "torch.nn.modules.linear.Linear",
    "bitsandbytes.nn.modules.Linear4bit",
    "bitsandbytes.nn.modules.Linear8bitLt",
)
"""Base layers whose output is a fresh tensor that they do not keep for their own backward."""

MERGE_REFUSAL = (
    "An AlphaLoRA adapter cannot be merged into the base weights: its router chooses and weighs "
    "the experts anew for every token, so no single weight matrix gives the same outputs. "
    "Load the adapter beside the base model (PeftModel.from_pretrained), or make a plain LoRA of "
    "it (`alphalora export`)."
)


class AlphaLoraLayer(nn.Module, BaseTunerLayer):
    """A linear layer (plain, quantised or Conv1D) with stacked LoRA experts.

    `h = W0 x + s * sum_e g_e B_e A_e dropout(x)`, gates `g` from one bias-free router on x.
    What it holds for an adapter is in `Mixture.tensors`. Its
    attributes are about the N experts of rank r that it has, which are those that were planned, or
    their parts where `segments` cuts them.

    Args:
        base_layer: The layer to adapt.
        adapter_name: Name of the adapter.
        config: The adapter's configuration.
        num_experts: Experts of this layer before they are cut, at least 1.
        rank: Rank of each of them, at least 1.
        module_name: The layer's name in the base model.
        balancer: State shared by the routed layers of the model.
        get_apply_tensor_subclass: Passed on to PEFT's torchao back end.

    Raises:
        TypeError: If PEFT cannot tell the layer's sizes.
    """

    adapter_layer_names = (
        "alphalora_A",
        "alphalora_B",
        "alphalora_router",
        "alphalora_router_down",
    )
    other_param_names = (
        "alphalora_dropout",
        "r",
        "num_experts",
        "top_k",
        "scaling",
        "aux_loss_coef",
        "balance_over_ranks",
        "block_share",
    )

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: AlphaLoraConfig,
        num_experts: int,
        rank: int,
        module_name: str,
        balancer: LoadBalancer,
        **quantization_kwargs: Any,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.module_name = module_name
        self.balancer = balancer
        base = self.get_base_layer()
        in_features, out_features = in_out_features(base)
        if in_features is None or out_features is None:
            raise TypeError(f"{module_name}: the sizes of a {type(base).__name__} are unknown.")
        self.in_features: int = in_features
        self.out_features: int = out_features
        self.quantization_backend = resolve_quantization_backend(base, **quantization_kwargs)

        self.alphalora_A = nn.ParameterDict()
        self.alphalora_B = nn.ParameterDict()
        self.alphalora_router = nn.ParameterDict()
        self.alphalora_router_down = nn.ParameterDict()
        self.alphalora_dropout = nn.ModuleDict()
        self.r: dict[str, int] = {}
        self.num_experts: dict[str, int] = {}
        self.top_k: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.aux_loss_coef: dict[str, float] = {}
        self.balance_over_ranks: dict[str, bool] = {}
        self.block_share: dict[str, float] = {}
        self.tokens: Tokens = "own"
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, num_experts, rank)

    def update_layer(
        self, adapter_name: str, config: AlphaLoraConfig, num_experts: int, rank: int
    ) -> None:
        """Add an adapter, or replace the one of that name.

        Args:
            adapter_name: Name of the adapter.
            config: Its configuration.
            num_experts: Its experts on this layer before they are cut, at least 1.
            rank: Rank of each of them, at least 1.
        """
        mixture = config.mixture
        self.r[adapter_name] = rank // mixture.segments
        self.num_experts[adapter_name] = mixture.experts(num_experts)
        self.top_k[adapter_name] = mixture.active(num_experts)
        self.scaling[adapter_name] = config.scaling(rank)
        self.aux_loss_coef[adapter_name] = config.aux_loss_coef
        self.balance_over_ranks[adapter_name] = config.balance_over == "global_batch"
        self.block_share[adapter_name] = 1.0
        self.alphalora_dropout[adapter_name] = (
            nn.Dropout(config.lora_dropout) if config.lora_dropout > 0.0 else nn.Identity()
        )
        shapes = mixture.tensors(self.in_features, self.out_features, num_experts, rank)
        for name in self.adapter_layer_names:
            part = getattr(self, name)
            if adapter_name in part:
                del part[adapter_name]  # that of the adapter which is replaced
            if name in shapes:
                part[adapter_name] = nn.Parameter(torch.empty(shapes[name]))
        self.reset_alphalora_parameters(adapter_name, zero_b=config.init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        if device is None:
            device = computes_on(self.get_base_layer())
        with kept_frozen([self], adapter_name):
            super()._move_adapter_to_device_of_base_layer(adapter_name, device)

    def reset_alphalora_parameters(self, adapter_name: str, zero_b: bool = True) -> None:
        """Draw A and router as MoLA does (Kaiming uniform, a = sqrt 5); B is zero, or drawn too.

        So are both parts of a router of low rank. Each divides the variance of what it reads by 3,
        whatever the sizes, so that its logits begin sqrt(3) times smaller than a full router's and
        the gates a little more even.
        """
        drawn = [self.alphalora_A, self.alphalora_router, self.alphalora_router_down]
        if zero_b:
            nn.init.zeros_(self.alphalora_B[adapter_name])
        else:
            drawn.append(self.alphalora_B)
        for part in drawn:
            if adapter_name in part:
                nn.init.kaiming_uniform_(part[adapter_name], a=math.sqrt(5))

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Apply the base layer and the active adapters.

        Args:
            x: [..., in].
            *args: Passed on to the base layer.
            **kwargs: Passed on to the base layer.

        Returns:
            [..., out], in the base layer's output dtype.
        """
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        for name in self.active_adapters:
            if name in self.scaling:
                result = self._add(name, x, result)
        return result

    def _add(self, name: str, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """Add what one adapter computes from x to the base layer's output."""
        parts: Any = self._modules
        dropout = parts["alphalora_dropout"]._modules[name]
        if not (dropout.training or self.balancer.observing or torch.is_grad_enabled()):
            return self._infer(name, x, result)
        self.balancer.note(self._router_name(name))
        if (
            fused_paths().function
            and x.device.type in FUSED_DEVICES
            and type(dropout) in (nn.Dropout, nn.Identity)
            and (self.cast_input_dtype_enabled or x.dtype == self.alphalora_A[name].dtype)
        ):
            return self._add_fused(name, x, result)
        return self._add_plain(name, x, result)

    def _add_fused(self, name: str, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        balancer, dropout = self.balancer, self.alphalora_dropout[name]
        result, sums, slots = add_experts(
            result,
            x,
            self.alphalora_A[name],
            self.alphalora_B[name],
            self.part("alphalora_router", name),
            self.part("alphalora_router_down", name),
            top_k=self.top_k[name],
            scaling=self.scaling[name],
            dropout=getattr(dropout, "p", 0.0) if dropout.training else 0.0,
            valid=balancer.valid(self.tokens, x.shape[:-1]),
            term=self._balance(name),
            in_place=self._owns(result),
        )
        if sums is not None and slots is not None and balancer.observing:
            balancer.record(self._router_name(name), sums, slots, self.block_share[name])
        return result

    def _add_plain(self, name: str, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """The same with plain operators and autograd."""
        a = self.alphalora_A[name]
        x = self._cast_input_dtype(x, a.dtype)
        gates = None
        if name in self.alphalora_router:
            logits = router_logits(
                x, self.alphalora_router[name], self.part("alphalora_router_down", name)
            )
            gates, probabilities, selected = route(logits, self.top_k[name])
            if self.balancer.observing:
                gates = self._observe(name, gates, probabilities, selected)
        delta = mix_experts(self.alphalora_dropout[name](x), a, self.alphalora_B[name], gates)
        return torch.add(result, cast(delta, result.dtype), alpha=self.scaling[name])

    def _observe(
        self, name: str, gates: torch.Tensor, probabilities: torch.Tensor, selected: torch.Tensor
    ) -> torch.Tensor:
        """Record a router's decisions; its gates with the load-balancing loss attached."""
        number, term = gates.shape[-1], self._balance(name)
        flat = [decided.reshape(-1, number) for decided in (gates, probabilities, selected)]
        sums = router_sums(
            flat[0], flat[1], flat[2], self.balancer.valid(self.tokens, gates.shape[:-1])
        )
        slots = term.slots(sums, number)
        self.balancer.record(self._router_name(name), sums, slots, self.block_share[name])
        if term.coefficient == 0.0 or not gates.requires_grad:
            return gates
        return attach_loss(gates, load_balancing_loss(sums, slots), *term[:3])

    def _infer(self, name: str, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """The same without gradients, dropout and statistics, in as few steps as it takes.

        A decode step consists of small operations: every one, and every call, counts.
        """
        parts: Any = self._modules  # its dictionaries' own lookups take as long as an operation
        a, b = parts["alphalora_A"]._parameters[name], parts["alphalora_B"]._parameters[name]
        if x.dtype != a.dtype:
            x = self._cast_input_dtype(x, a.dtype)
        hidden = F.linear(x, a)  # [..., N*r], or [..., N*r / c] of a shared A
        number = self.num_experts[name]
        if number > 1:
            router = parts["alphalora_router"]._parameters[name]
            lower = parts["alphalora_router_down"]._parameters
            logits = router_logits(x, router, lower[name] if name in lower else None)
            gates = gate(logits, self.top_k[name], hidden.dtype)
            if len(a) == b.shape[1]:
                hidden.view(*logits.shape, self.r[name]).mul_(gates.unsqueeze(-1))
            else:
                hidden = weigh(hidden, gates, copies_of(a, b))
        delta = F.linear(hidden, b)
        if delta.dtype != result.dtype:
            delta = delta.to(result.dtype)
        return torch.add(result, delta, alpha=self.scaling[name])

    def _balance(self, name: str) -> BalanceTerm:
        trained = self.training and self._trains_router(name)
        coefficient = self.aux_loss_coef[name] * self.block_share[name] if trained else 0.0
        return self.balancer.term(coefficient, self.balance_over_ranks[name])

    def _trains_router(self, name: str) -> bool:
        parts = (self.part(part, name) for part in ("alphalora_router", "alphalora_router_down"))
        return any(part is not None and part.requires_grad for part in parts)

    def trained_names(self) -> list[str]:
        """The active adapters that are trained here, as the balancer names their routers."""
        return [
            self._router_name(name)
            for name in ([] if self.disable_adapters else self.active_adapters)
            if name in self.alphalora_A and self.alphalora_A[name].requires_grad
        ]

    def part(self, part: str, name: str) -> torch.Tensor | None:
        """One of an adapter's tensors, by its attribute here; None where it has none."""
        # By their own lookup, in which ZeRO-3 gathers what it has partitioned.
        tensors = getattr(self, part)
        return tensors[name] if name in tensors else None

    def _router_name(self, name: str) -> str:
        return f"{self.module_name}.{name}"

    def _owns(self, result: torch.Tensor) -> bool:
        """Whether the base layer's output is fresh, and nobody else has seen it.

        Hooks may have kept it, and so may what looks on below autograd, such as selective
        checkpointing, which keeps the outputs of matrix products.
        """
        # torch.compile decides for itself what happens in place.
        if torch.compiler.is_compiling() or is_watched():
            return False
        base = self.base_layer
        kind = type(base)
        return (
            f"{kind.__module__}.{kind.__qualname__}" in FRESH_OUTPUT
            and not has_hooks(base)
            and result.is_contiguous()
            and not result._is_view()
        )

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Not possible for a routed adapter.

        Raises:
            NotImplementedError: Always, with the reason.
        """
        raise NotImplementedError(MERGE_REFUSAL)

    def unmerge(self) -> None:
        """Nothing to undo: an adapter of this kind is never merged."""

    def extra_repr(self) -> str:
        """Show counts and ranks in the printed model."""
        counts = ", ".join(
            f"{name}: {self.num_experts[name]} x r{self.r[name]}, top-{self.top_k[name]}"
            for name in self.alphalora_A
        )
        return f"experts=({counts}) {quantization_extra_repr(self)}".rstrip()

    def __repr__(self) -> str:
        return "alphalora." + super().__repr__()
