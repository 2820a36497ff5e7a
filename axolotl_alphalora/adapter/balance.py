"""The load-balancing loss: how its gradient reaches the routers, and its value the log.

The loss is never added to the model's loss. Every routed layer attaches its own share to the
gates with an identity whose backward also emits the share's gradient (`attach_loss`). The
layer is recomputed under gradient checkpointing, and the share with it, so neither
checkpointing mode can lose it. How much the model's loss counts in the total that is
differentiated (gradient accumulation, loss scaling, data parallel averaging) is read from a
second identity on the loss itself, whose backward runs first (`probe_loss`).

Both meet in a `LoadBalancer`, one for each base model, which is found by a plain key from
inside opaque operators: a value read from a Python attribute in a backward would be frozen
by torch.compile.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from transformers.utils import ModelOutput

from .batch import micro_batch_weight, padding_mask, token_mask
from .functional import load_balancing_loss
from .usage import Reduce, UsageMeter, router_sums

Phase = Literal["train", "eval"]
HOOKS = "_alphalora_hooks"

_keys = itertools.count()
_balancers: weakref.WeakValueDictionary[int, LoadBalancer] = weakref.WeakValueDictionary()


@dataclass
class _Meter:
    """Weighted mean of a scalar that stays on its device until it is read."""

    total: torch.Tensor | None = None
    weight: torch.Tensor | float = 0.0

    def add(self, value: torch.Tensor, weight: torch.Tensor | float) -> None:
        if isinstance(weight, torch.Tensor):
            weight = weight.to(value.device)
        value = value * weight
        self.total = value if self.total is None else self.total.to(value.device) + value
        self.weight = self.weight + weight

    def pop(self, reduce: Reduce | None) -> float | None:
        total = torch.zeros(()) if self.total is None else self.total.float()
        sums = torch.stack([total, torch.as_tensor(self.weight).to(total)])
        self.total, self.weight = None, 0.0
        total, weight = (sums if reduce is None else reduce(sums)).tolist()
        # Micro-batches without a target have no weight.
        return None if weight == 0.0 else total / weight


@dataclass
class _Pass:
    """What the routers need to know of the forward pass they are in."""

    phase: Phase | None = None
    valid: torch.Tensor | None = None
    weight: torch.Tensor | float = 1.0
    losses: dict[str, torch.Tensor] = field(default_factory=dict)
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    counted: bool = False


class LoadBalancer:
    """State shared by the routed layers of one base model.

    Its two hooks sit on the base model's forward, so that they also work where a caller goes
    around the `PeftModel`. What they note (padding mask, share of the batch) is read again when
    a layer is recomputed in the backward pass. A forward without gradients in between, such as
    that of a reference model, is set aside again; a second *training* forward of another batch
    before the first one's backward is not supported under gradient checkpointing.

    Attributes:
        default_scale: d(total) / d(loss) where the model does not compute the loss itself, as
            in reinforcement learning: 1 / accumulation steps, set by the trainer's callback.
        evaluating: Whether a trainer's evaluation runs, so that passes without labels count too.
        usage: What the routers decide in each phase, where somebody has put a meter to read it.
    """

    def __init__(self, default_scale: float = 1.0) -> None:
        self.default_scale = default_scale
        self.evaluating = False
        self.usage: dict[Phase, UsageMeter] = {}
        self.recorded_scale: torch.Tensor | None = None
        self.key = next(_keys)
        self._pass = _Pass()
        self._training_pass = self._pass
        self._last: dict[str, torch.Tensor] = {}
        self._meters: dict[Phase, _Meter] = {"train": _Meter(), "eval": _Meter()}
        _balancers[self.key] = self

    def __reduce__(self) -> tuple[type[LoadBalancer], tuple[float]]:
        """Copy and pickle as a fresh balancer: the key must stay unique, the rest is transient."""
        return LoadBalancer, (self.default_scale,)

    def install(self, model: nn.Module) -> None:
        """Put the two hooks on the base model, unless they are there.

        Their handles are kept with the model, so that they are copied with it. Those of a balancer
        whose layers another tuner has unloaded are taken off.
        """
        if model.__dict__.get(HOOKS, (None,))[0] == self.key:
            return
        self.remove(model)
        before = model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        after = model.register_forward_hook(self._after_forward, with_kwargs=True, always_call=True)
        setattr(model, HOOKS, (self.key, before, after))

    @staticmethod
    def remove(model: nn.Module) -> None:
        """Take the hooks off a base model."""
        for hook in model.__dict__.pop(HOOKS, ())[1:]:
            hook.remove()

    @property
    def observing(self) -> bool:
        """Whether this pass is one of training or evaluation, so that `observe` is to be called."""
        return self._pass.phase is not None

    def observe(
        self,
        module: str,
        gates: torch.Tensor,
        probabilities: torch.Tensor,
        selected: torch.Tensor,
        *,
        block_share: float,
        coefficient: float,
        over_ranks: bool = False,
    ) -> torch.Tensor:
        """Account for one router's decisions and attach its load-balancing loss to the gates.

        Only in a pass that is `observing`.

        Args:
            module: Name under which the value is kept until the end of the forward pass.
            gates: [..., N] fp32.
            probabilities: [..., N] fp32.
            selected: [..., N], 1 for the chosen experts.
            block_share: 1 / number of routers in this router's block.
            coefficient: `aux_loss_coef`; 0 attaches nothing.
            over_ranks: Whether each expert's share of the tokens is that over all processes of a
                distributed training run; its mean probability stays that of this process, whose
                gradient the run averages.

        Returns:
            The gates, with the loss attached where a gradient is being recorded in training.
        """
        current = self._pass
        attach = coefficient > 0.0 and current.phase == "train" and gates.requires_grad
        num_experts = gates.shape[-1]
        tokens = probabilities.reshape(-1, num_experts)
        valid = token_mask(current.valid, probabilities.shape[:-1])
        reduce = _sum_over_ranks if over_ranks and current.phase == "train" else None
        loss = load_balancing_loss(tokens, selected.reshape(-1, num_experts), valid, reduce)
        current.losses[module] = loss.detach() * block_share
        # Sums of a recomputation would never be read: not worth making.
        if current.phase in self.usage and not current.counted:
            shape = tokens.shape
            current.sums[module] = router_sums(
                gates.reshape(shape), tokens, selected.reshape(shape), valid
            )
        if not attach:
            return gates
        return attach_loss(gates, loss, current.weight, coefficient * block_share, self.key)

    def pop(self, phase: Phase, reduce: Reduce | None = None) -> float | None:
        """Mean load-balancing loss (sum over blocks, before the coefficient) since the last call.

        Reading it waits for the device. None where no routed layer ran in that phase.

        Args:
            phase: Which passes.
            reduce: Sums a flat tensor over processes.
        """
        return self._meters[phase].pop(reduce)

    def pop_not_finite(self) -> list[str]:
        """Modules whose router was not finite in the last counted pass, in the model's order.

        Reading it waits for the device; worth it where `pop` gave NaN.
        """
        losses, self._last = self._last, {}
        return [name for name, loss in losses.items() if not bool(loss.isfinite())]

    def _before_forward(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        labels = kwargs.get("labels")
        self._pass = _Pass()
        if model.training and torch.is_grad_enabled():
            self._pass.phase = "train"
            self._pass.weight = micro_batch_weight(model, labels, kwargs)
            self._training_pass = self._pass
            self.recorded_scale = None
        elif not model.training and (labels is not None or self._counts_without_labels(kwargs)):
            self._pass.phase = "eval"
        if self.observing:
            self._pass.valid = padding_mask(model, args, kwargs)

    def _counts_without_labels(self, kwargs: Mapping[str, Any]) -> bool:
        """Preference trainers evaluate without labels; generation has a cache."""
        return self.evaluating and kwargs.get("past_key_values") is None

    def _after_forward(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        current = self._pass
        # The layers of the last training pass may still be recomputed in its backward.
        self._pass = self._training_pass
        if current.phase is not None and current.losses:
            values = list(current.losses.values())
            total = torch.stack([value.to(values[0].device) for value in values]).sum()
            self._meters[current.phase].add(total, current.weight)
            # Recomputation in the backward pass fills the pass's own dictionary again.
            self._last, current.losses = current.losses, {}
            if current.sums:
                self.usage[current.phase].add(current.sums)
                current.sums = {}
            current.counted = True
        if current.phase != "train" or kwargs.get("labels") is None:
            return output
        return _probe_output(output, self.key)


def _sum_over_ranks(share: torch.Tensor) -> torch.Tensor:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        share = share.detach().clone()
        dist.all_reduce(share)
    return share


def attach_loss(
    gates: torch.Tensor,
    loss: torch.Tensor,
    weight: torch.Tensor | float,
    coefficient: float,
    key: int,
) -> torch.Tensor:
    """Return the gates unchanged; their backward also differentiates the loss.

    Args:
        gates: [..., N] fp32.
        loss: 0-d fp32, a function of the same router's logits.
        weight: Share of this micro-batch in the step: 0-d tensor, or 1.
        coefficient: Factor on the loss.
        key: The `LoadBalancer` to ask for d(total) / d(model's loss).
    """
    if not isinstance(weight, torch.Tensor):
        weight = loss.new_tensor(weight)
    return _AttachLoss.apply(gates, loss, weight.to(loss.device) * coefficient, key)


def probe_loss(loss: torch.Tensor, key: int) -> torch.Tensor:
    """Return a copy of the loss whose backward records d(total) / d(loss) for `key`."""
    return _ProbeLoss.apply(loss, key)


class _AttachLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gates, loss, weight, key):
        ctx.save_for_backward(weight)
        ctx.key = key
        return gates.view_as(gates)

    @staticmethod
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        return grad, weight * _read_loss_scale(grad, ctx.key), None, None


class _ProbeLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, key):
        ctx.key = key
        # The HF Trainer multiplies the loss it gets in place.
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        return _record_loss_scale(grad, ctx.key), None


@torch.library.custom_op("alphalora::record_loss_scale", mutates_args=())
def _record_loss_scale(grad: torch.Tensor, key: int) -> torch.Tensor:
    _balancers[key].recorded_scale = grad.detach().float().clone()
    return grad.clone()


@_record_loss_scale.register_fake
def _(grad: torch.Tensor, key: int) -> torch.Tensor:
    return torch.empty_like(grad)


@torch.library.custom_op("alphalora::read_loss_scale", mutates_args=())
def _read_loss_scale(grad: torch.Tensor, key: int) -> torch.Tensor:
    balancer = _balancers[key]
    if balancer.recorded_scale is None:
        return grad.new_full((), balancer.default_scale)
    return balancer.recorded_scale.to(device=grad.device, dtype=grad.dtype, copy=True)


@_read_loss_scale.register_fake
def _(grad: torch.Tensor, key: int) -> torch.Tensor:
    return grad.new_empty(())


def _probe_output(output: Any, key: int) -> Any:
    """Put the probe on the loss of a model's output: a ModelOutput, or a tuple led by it."""
    if isinstance(output, ModelOutput):
        loss = output.get("loss")
        if loss is not None and loss.requires_grad:
            output["loss"] = probe_loss(loss, key)
    elif isinstance(output, tuple):
        loss = output[0]
        if isinstance(loss, torch.Tensor) and loss.ndim == 0 and loss.requires_grad:
            return (probe_loss(loss, key), *output[1:])
    return output
