"""The adapters that a training step is measured with, and the step.

Those of one process share the base model's weights. Adapters are trained in fp32, PEFT's default;
those of mixlora in the base's dtype, as axolotl makes them. How steps are timed is not known here.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from axolotl_alphalora.adapter import AlphaLoraConfig, AlphaLoraLayer
from axolotl_alphalora.adapter.functional import route
from axolotl_alphalora.adapter.fused import using
from axolotl_alphalora.blocks import block_name, group_by_block
from axolotl_alphalora.mixture import Mixture

from .common import SHAPES

CONTESTANTS = (
    "none",
    "lora",
    "lora-equal",
    "experts",
    "experts-plain",
    "experts-triton",
    "plan",
    "uneven",
    "dispatch",
    "experts-ffn",
    "mixlora",
)
MIXTURES: Mapping[str, dict[str, Any]] = {
    "experts": {},
    "segments-4": {"segments": 4},
    "segments-8": {"segments": 8},
    "router-16": {"router_rank": 16},
    "share-a": {"share_a": True},
}
"""Shapes of a mixture, by what differs from `experts`."""
MORE = (*(name for name in MIXTURES if name not in CONTESTANTS), *(f"{n}-lora" for n in MIXTURES))
"""Contestants that take part where they are named."""
FFN = ["gate_proj", "up_proj", "down_proj"]
"""The layers that mixlora gives experts to."""
SWITCHES = {"experts-plain": {"function": False}, "experts-triton": {"triton": True}}
"""The fused paths that differ from the default ones."""


class Absent(Exception):
    """A contestant cannot take part here; says why."""


class Contestant:
    """A model, its optimizer, and one training step.

    Args:
        model: With its adapter, ready to train.
        ids: The tokens of every step, [batch, length].
        bf16: Whether to run under autocast, as the Trainer does with `bf16: true`.
        extra_loss: What is added to the model's loss.
        optimizer: Takes the trained parameters.
        switches: Fused paths that are taken or not, see `axolotl_alphalora.adapter.fused`.
    """

    def __init__(
        self,
        model: Any,
        ids: Tensor,
        bf16: bool = False,
        extra_loss: Callable[[], Tensor] | None = None,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
        switches: Mapping[str, bool] | None = None,
    ) -> None:
        self.switches = switches or {}
        self.model, self.ids, self.bf16, self.extra_loss = model, ids, bf16, extra_loss
        trained = [p for p in model.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in trained)
        make = optimizer or (lambda found: torch.optim.AdamW(found, lr=1e-4))
        self.optimizer = make(trained) if trained else None
        self.last_loss: Tensor | None = None

    def autocast(self) -> torch.autocast:
        """The precision that the forward runs in."""
        return torch.autocast(self.ids.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def loss(self) -> Tensor:
        """Forward."""
        with using(**self.switches), self.autocast():
            loss = self.model(input_ids=self.ids, labels=self.ids, use_cache=False).loss
        return loss if self.extra_loss is None else loss + self.extra_loss()

    def gradients(self) -> None:
        """Forward and backward; the gradients are dropped."""
        loss = self.loss()
        with using(**self.switches):
            loss.backward()
        self.model.zero_grad()

    def step(self) -> float:
        """Forward, backward, update; seconds."""
        start = time.perf_counter()
        loss = self.loss()
        with using(**self.switches):  # checkpointing runs the forward again
            loss.backward()
        self.last_loss = loss.detach()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.ids.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start


class DispatchLoop(nn.Module):
    """A mixture as it is commonly written: each expert on the tokens that were sent to it.

    A plain implementation to measure against. It computes what an AlphaLoRA layer does, from the
    same parameters, but for the load-balancing loss, which it leaves out.

    Args:
        layer: The AlphaLoRA layer whose weights to start from.
        dropout: On the experts' input.
    """

    def __init__(self, layer: AlphaLoraLayer, dropout: float) -> None:
        super().__init__()
        self.base_layer = layer.base_layer
        self.number, rank = layer.num_experts["default"], layer.r["default"]
        self.top_k, self.scaling = layer.top_k["default"], layer.scaling["default"]
        self.dropout = nn.Dropout(dropout)
        a, b = layer.alphalora_A["default"], layer.alphalora_B["default"]
        self.down = nn.ParameterList(part.detach().clone() for part in a.split(rank))
        self.up = nn.ParameterList(part.detach().clone() for part in b.split(rank, dim=1))
        routers = layer.alphalora_router
        self.router = nn.Parameter(routers["default"].detach().clone()) if self.number > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the base layer and the experts to [..., in]."""
        result = self.base_layer(x)
        tokens = x.reshape(-1, x.shape[-1]).to(self.down[0].dtype)  # [T, in]
        seen = self.dropout(tokens)
        if self.router is None:
            delta = self.expert(0, seen)
        else:
            gates = route(F.linear(tokens, self.router), self.top_k)[0]  # [T, N]
            delta = seen.new_zeros(seen.shape[0], self.up[0].shape[0])  # [T, out]
            for number in range(self.number):
                (chosen,) = torch.where(gates[:, number] > 0)
                weight = gates[chosen, number, None].to(seen.dtype)
                delta = delta.index_add(0, chosen, weight * self.expert(number, seen[chosen]))
        return result + (self.scaling * delta).reshape(result.shape).to(result.dtype)

    def expert(self, number: int, tokens: Tensor) -> Tensor:
        """One expert on some tokens."""
        return F.linear(F.linear(tokens, self.down[number]), self.up[number])


def with_loops(model: nn.Module, dropout: float) -> nn.Module:
    """Put loops in the place of a model's AlphaLoRA layers."""
    for name, module in list(model.named_modules()):
        if isinstance(module, AlphaLoraLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, DispatchLoop(module, dropout))
    return model


def uneven_counts(base: nn.Module, mean: int) -> dict[str, int]:
    """Experts by module: by block a straight line with this mean, from one expert on."""
    names = [
        name
        for name, module in base.named_modules()
        if hasattr(module, "in_features") and name != "lm_head"
    ]
    blocks = list(group_by_block(names))
    last = max(len(blocks) - 1, 1)
    numbers = {b: 1 + round(2 * (mean - 1) * place / last) for place, b in enumerate(blocks)}
    return {name: numbers[block_name(name)] for name in names}


def plan_counts(model: str, options: argparse.Namespace) -> dict[str, int]:
    """Experts by module: AlphaLoRA's plan for a model's weights, as `alphalora plan` makes it.

    Args:
        model: Directory or hub id.
        options: With `experts`, the mean number of a block, `rank` and `top_k`.

    Raises:
        Absent: If the weights are random, or no plan can be made of them.
    """
    if model in SHAPES:
        raise Absent("random weights have no spectra to plan by: `uneven` stands in")
    try:
        from axolotl_alphalora.allocation import Budget
        from axolotl_alphalora.mixture import Mixture
        from axolotl_alphalora.planning import PlanRequest, Targets, plan_from_files
    except ImportError as error:
        raise Absent(f"planning cannot be imported ({error})") from error
    request = PlanRequest(
        base_model=model,
        targets=Targets(linear=True),
        rank=options.rank,
        mixture=Mixture(top_k=options.top_k),
        budget=Budget(experts_per_block=float(options.experts)),
    )
    try:
        return plan_from_files(request)[0].counts
    except ValueError as error:
        raise Absent(str(error)) from error


def build(
    name: str, base: Any, ids: Tensor, options: argparse.Namespace, **rest: Any
) -> Contestant:
    """Build one contestant, sharing the base's weights.

    Args:
        name: One of `CONTESTANTS` or `MORE`.
        base: The frozen base model.
        ids: The tokens of every step.
        options: As `benchmarks.training_step` reads them.
        **rest: More arguments of the `Contestant`.

    Raises:
        Absent: If it cannot take part here.
    """
    if name == "experts-triton" and not ids.is_cuda:
        raise Absent("its kernels need a CUDA GPU")
    model = copy.deepcopy(base, {id(p): p for p in base.parameters()})
    if name == "mixlora":
        model, rest["extra_loss"] = mixlora(model, options)
    elif name != "none":
        model = get_peft_model(model, _config(name, base, options)).get_base_model()
    if name == "dispatch":
        model = with_loops(model, options.dropout)
    if options.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Gradients run through the frozen weights too, as in a run that trains any adapter.
    model.enable_input_require_grads()
    bf16 = options.dtype == "bf16"
    return Contestant(model.train(), ids, bf16, switches=SWITCHES.get(name), **rest)


def _config(name: str, base: Any, options: argparse.Namespace) -> Any:
    experts, rank = options.experts, options.rank
    shared: dict[str, Any] = {"target_modules": "all-linear", "lora_dropout": options.dropout}
    mixture = {"segments": options.segments} | MIXTURES.get(name.removesuffix("-lora"), {})
    if name in ("lora", "lora-equal") or name.endswith("-lora"):
        width = rank if name == "lora" else experts * rank
        if name.endswith("-lora"):
            width = equal_rank(base, Mixture(options.top_k, **mixture), experts, rank)
        return LoraConfig(r=width, lora_alpha=2 * width, **shared)
    counts: Any = experts
    if name == "experts-ffn":
        shared["target_modules"] = FFN
    elif name == "plan":
        counts = plan_counts(options.model, options)
    elif name == "uneven":
        counts = uneven_counts(base, experts)
    if isinstance(counts, dict):
        del shared["target_modules"]
    settings = {"r": rank, "lora_alpha": 2 * rank, "top_k": options.top_k}
    return AlphaLoraConfig(num_experts=counts, **settings, **shared, **mixture)


def equal_rank(base: nn.Module, mixture: Mixture, experts: int, rank: int) -> int:
    """Rank of a LoRA of all linear layers that trains as many parameters, routers included."""
    shapes = [
        (module.in_features, module.out_features)
        for name, module in base.named_modules()
        if hasattr(module, "in_features") and name != "lm_head"
    ]
    wanted = sum(mixture.parameters(*shape, experts, rank) for shape in shapes)
    return max(1, round(wanted / sum(map(sum, shapes))))


def mixlora(model: Any, options: argparse.Namespace) -> tuple[Any, Callable[[], Tensor]]:
    """Axolotl's mixlora on the feed-forward layers, and what its trainer adds to the loss.

    Raises:
        Absent: If axolotl is not installed.
    """
    try:
        from axolotl.integrations.mixlora.constants import MIXLORA_DEFAULTS
        from axolotl.integrations.mixlora.loss import collect_mixlora_aux_loss
        from axolotl.integrations.mixlora.patching import patch_model_with_mixlora
    except ImportError as error:
        raise Absent(f"axolotl cannot be imported ({error})") from error
    settings = SimpleNamespace(
        mixlora_num_experts=options.experts,
        mixlora_top_k=min(options.top_k, options.experts),
        lora_r=options.rank,
        lora_alpha=2 * options.rank,
        lora_dropout=options.dropout,
    )
    model = patch_model_with_mixlora(model, settings)
    coefficient = MIXLORA_DEFAULTS["mixlora_router_aux_loss_coef"]
    return model, lambda: collect_mixlora_aux_loss(model, coefficient)
