"""The load-balancing loss: how its gradient reaches the routers, and its value the log.

The loss is never added to the model's loss. Every routed layer adds its own share to the gradient
of its router: the fused function in closed form (`gating.Balance`), its plain twin with an identity
on the gates whose backward also differentiates the share (`attach_loss`). The layer is recomputed
under gradient checkpointing, and the share with it, so neither checkpointing mode can lose it. How
much the model's loss counts in the total that is differentiated (gradient accumulation, loss
scaling, data parallel averaging) is read from an identity on the loss itself, whose backward runs
first (`probe_loss`). They meet in a `LossScale`, that of the base model's `LoadBalancer`.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from .batch import (
    OUTSIDE,
    Decision,
    Pass,
    Passes,
    Phase,
    Tokens,
    computes_loss,
    micro_batch_weight,
    padding_of,
    positional_names,
)
from .calls import CallReport
from .functional import load_balancing_loss
from .loss_scale import LossScale, probe_output
from .usage import MeanMeter, Reduce, UsageMeter

HOOKS = "_alphalora_hooks"


class BalanceTerm(NamedTuple):
    """A router's load-balancing loss as a part of the total that is differentiated.

    Attributes:
        weight: Share of this micro-batch in the step: 0-d tensor, or 1.
        coefficient: Factor on the loss; 0 where it is not to be differentiated.
        key: The `LossScale` to ask for d(total) / d(model's loss).
        over_ranks: Whether the experts' shares are those over all processes.
    """

    weight: torch.Tensor | float
    coefficient: float
    key: int
    over_ranks: bool

    def slots(self, sums: torch.Tensor, number: int) -> torch.Tensor:
        """The selected slots of each of N experts that the loss counts: [N]."""
        slots = sums[:number]
        return _sum_over_ranks(slots) if self.over_ranks else slots


class LoadBalancer:
    """State shared by the routed layers of one base model.

    Its two hooks sit on the base model's forward, so that they also work where a caller goes
    around the `PeftModel`. What they note (padding, share of the batch) is read again when a layer
    is recomputed in the backward pass. There may be other passes in between: without gradients,
    such as that of a reference model, or other training passes, as contrastive losses make them.

    Attributes:
        scale: d(total) / d(loss). Its default holds where the model does not compute the loss
            itself, as in reinforcement learning: 1 / accumulation steps, set by
            `AlphaLoraCallback`; its `of_shares` where the pass knows its share of the step.
        evaluating: The routers that are measured while a trainer's evaluation runs, also in passes
            without labels; a reference adapter's, which is active now and then, are not among
            them. Empty elsewhere.
        usage: What the routers decide in each phase, where somebody has put a meter to read it.
        calls: Says which layers a training pass left out, or called more than once.
    """

    def __init__(self, default_scale: float | None = None) -> None:
        self.scale = LossScale(default_scale)
        # Of passes without labels, whose losses no probe sees.
        self._unlabelled = LossScale(of=self.scale)
        self._shares = LossScale(of=self.scale, shares=True)
        self.evaluating: frozenset[str] = frozenset()
        self.usage: dict[Phase, UsageMeter] = {}
        self.passes = Passes()
        self.calls = CallReport(self.passes)
        self._last: dict[str, list[Decision]] = {}
        self._meters: dict[Phase, MeanMeter] = {"train": MeanMeter(), "eval": MeanMeter()}
        self._outside_named = False

    def __reduce__(self) -> tuple[type[LoadBalancer], tuple[Any, ...]]:
        """Copy and pickle as a fresh balancer: the key must stay unique, the rest is transient."""
        return LoadBalancer, (self.scale.default,)

    def install(self, model: nn.Module) -> None:
        """Put the two hooks on the base model and its backbone, unless they are there.

        Their handles are kept with the modules, so that they are copied with them. Those of a
        balancer whose layers another tuner has unloaded are taken off.
        """
        self.calls.begin()
        if model.__dict__.get(HOOKS, (None,))[0] == self.scale.key:
            return
        self.remove(model)
        for module in _entrances(model):
            names = positional_names(module)
            before = module.register_forward_pre_hook(
                partial(self._before_forward, names), with_kwargs=True
            )
            after = module.register_forward_hook(self._after_forward, always_call=True)
            setattr(module, HOOKS, (self.scale.key, before, after))

    @staticmethod
    def remove(model: nn.Module) -> None:
        """Take the hooks off a base model."""
        for module in _entrances(model):
            for hook in module.__dict__.pop(HOOKS, ())[1:]:
                hook.remove()

    @property
    def observing(self) -> bool:
        """Whether this pass is one of training or evaluation, so that `record` is to be called."""
        return self.passes.current().phase is not None

    def valid(self, tokens: Tokens, shape: torch.Size) -> torch.Tensor | None:
        """Which tokens of a layer's input are real: [T], or None where all are.

        Args:
            tokens: Whose tokens they are.
            shape: Of the input, without features.
        """
        return self.passes.current().padding.of(tokens, shape)

    def term(self, coefficient: float, over_ranks: bool) -> BalanceTerm:
        """How a router's load-balancing loss takes part in this pass.

        Args:
            coefficient: `aux_loss_coef` times 1 / number of routers in the router's block; 0 in
                evaluation.
            over_ranks: Whether each expert's share of the tokens is that over all processes of a
                distributed training run; its mean probability stays that of this process, whose
                gradient the run averages.
        """
        current = self.passes.current()
        trained = coefficient and torch.is_grad_enabled()
        if current is OUTSIDE and trained and not self._outside_named:
            self._outside_named = True
            warnings.warn(
                "AlphaLoRA: layers are trained by calls that go around the forward of the base "
                "model (a part of it is called by itself): the load-balancing loss takes no part "
                "in those.",
                stacklevel=2,
            )
        training = current.phase == "train"
        return BalanceTerm(
            current.weight,
            coefficient if training else 0.0,
            self._scale_of(current).key,
            over_ranks and training,
        )

    def record(
        self, module: str, sums: torch.Tensor, slots: torch.Tensor, block_share: float
    ) -> None:
        """Keep one router's decisions until the end of the forward pass.

        Only in a pass that is `observing`.

        Args:
            module: Name of the router.
            sums: [4N + 2], as `router_sums` returns them.
            slots: [N], the selected slots that its load-balancing loss counts.
            block_share: 1 / number of routers in this router's block.
        """
        # Those of a recomputation would never be read.
        current = self.passes.current()
        left_out = bool(self.evaluating) and module not in self.evaluating
        if not (current.counted or left_out):
            made = Decision(sums.detach(), slots.detach(), block_share)
            current.decisions.setdefault(module, []).append(made)

    def note(self, layer: str) -> None:
        """Keep in mind that an adapter's layer ran; `layer` is named as its router would be."""
        self.passes.current().ran[layer] = None

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
        decisions, self._last = self._last, {}
        return [
            name
            for name, calls in decisions.items()
            if not all(bool(made.sums.isfinite().all()) for made in calls)
        ]

    def _before_forward(
        self,
        names: tuple[str, ...],
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        # The backbone that the model calls; a model that is called again was interrupted.
        running = self.passes.running
        if running is not model and getattr(running, "base_model", None) is model:
            return
        call = _bind(names, args, kwargs)
        current = self.passes.begin(model, model.training and torch.is_grad_enabled())
        current.labelled = computes_loss(call)
        if current.phase == "train":
            current.weight = micro_batch_weight(model, call)
            if not current.counted:
                self._scale_of(current).recorded = None
        elif not model.training and (current.labelled or self._counts_without_labels(call)):
            current.phase = "eval"
        if current.phase is not None:
            current.padding = padding_of(model, call)

    def _counts_without_labels(self, call: Mapping[str, Any]) -> bool:
        """Preference trainers evaluate without labels; generation has a cache."""
        return bool(self.evaluating) and call.get("past_key_values") is None

    def _after_forward(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.passes.running is not model:
            return output
        current = self.passes.end()
        failed = output is None
        if current.phase == "train" and not (failed or torch.compiler.is_compiling()):
            self.calls.name_idle(model)
            self.calls.name_repeated(current)
        if current.phase is not None and current.decisions:
            self._meters[current.phase].add(_total_loss(current.decisions), current.weight)
            if current.phase in self.usage:
                self.usage[current.phase].add(
                    {
                        name: sum((made.sums for made in calls[1:]), calls[0].sums)
                        for name, calls in current.decisions.items()
                    }
                )
            self._last, current.decisions = current.decisions, {}
            current.counted = True
        if current.phase != "train" or not current.labelled:
            return output
        return probe_output(output, self._scale_of(current).key)

    def _scale_of(self, one: Pass) -> LossScale:
        if isinstance(one.weight, torch.Tensor):
            return self._shares
        return self.scale if one.labelled else self._unlabelled


def _entrances(model: nn.Module) -> list[nn.Module]:
    """The modules that callers call: the base model, and its backbone beneath the heads.

    Trainers that project the hidden states in parts go around the heads.
    """
    backbone = getattr(model, "base_model", None)
    return (
        [model, backbone] if isinstance(backbone, nn.Module) and backbone is not model else [model]
    )


def _bind(
    names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a forward, by name."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _sum_over_ranks(share: torch.Tensor) -> torch.Tensor:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        share = share.detach().clone()
        dist.all_reduce(share)
    return share


def _total_loss(decisions: Mapping[str, list[Decision]]) -> torch.Tensor:
    """Load-balancing loss of a pass, the sum over blocks of their routers' mean.

    That of a router is the sum over its layer's calls.
    """
    alike: dict[tuple[int, float, torch.device], list[Decision]] = defaultdict(list)
    for made in chain.from_iterable(decisions.values()):
        alike[len(made.slots), made.block_share, made.sums.device].append(made)
    totals = [
        block_share
        * load_balancing_loss(
            torch.stack([made.sums for made in group]), torch.stack([made.slots for made in group])
        ).sum()
        for (_, block_share, _), group in alike.items()
    ]
    return torch.stack([total.to(totals[0].device) for total in totals]).sum()
