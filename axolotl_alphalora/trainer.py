"""The callback that connects a trainer with the routers: the balance's scale, the log, collapse."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from .adapter import adapted_layers, find_balancer, find_routers
from .adapter.balance import LoadBalancer
from .adapter.batch import Phase
from .adapter.usage import RouterUsage, UsageMeter, summarise
from .blocks import group_by_block
from .hosts.transformers import is_console

COLLAPSED = 0.9
"""A router has collapsed where one expert has more than this share of the gates."""

PATIENCE = 50
"""Optimizer steps that it must have lasted for."""


class CollapseWatch:
    """Tells, once for each router, when it has been collapsed for many steps.

    Args:
        coefficient: The adapter's `aux_loss_coef`.
        step: Optimizer steps done before, where a run is resumed.
    """

    def __init__(self, coefficient: float = 0.0, step: int = 0) -> None:
        self._coefficient = coefficient
        self._step = step
        self._since: dict[str, int] = {}
        self._named: set[str] = set()

    def see(self, usage: Mapping[str, RouterUsage], step: int) -> str | None:
        """Take in what the routers decided since the last call.

        Args:
            usage: Router to what it decided.
            step: Optimizer steps done.

        Returns:
            A warning, where there is something new to warn of.
        """
        shares = {name: max(router.gate_share) for name, router in usage.items()}
        collapsed = {name: share for name, share in shares.items() if share > COLLAPSED}
        self._since = {name: self._since.get(name, self._step) for name in collapsed}
        self._step = step
        lasting = {name for name, since in self._since.items() if step - since >= PATIENCE}
        new = sorted(lasting - self._named, key=shares.__getitem__, reverse=True)
        self._named |= lasting
        if not new:
            return None
        worst = usage[new[0]]
        expert = worst.gate_share.index(max(worst.gate_share))
        return (
            f"AlphaLoRA: {len(new)} of {len(usage)} routers have given more than "
            f"{100 * COLLAPSED:.0f} % of their gates to one expert for "
            f"{step - self._since[new[0]]} steps; most in {new[0].rpartition('.')[0]}, where "
            f"expert {expert + 1} of {len(worst.mean_gates)} has {100 * shares[new[0]]:.0f} %. "
            f"Their other experts hardly learn. {self._advice()}, lower the routers' learning "
            "rate (`router_lr_ratio` in the YAML), or give the adapter fewer experts "
            "(`experts_per_block`, `max_experts`)."
        )

    def _advice(self) -> str:
        if self._coefficient == 0.0:
            return "Switch the load-balancing loss on (`aux_loss_coef`, now 0)"
        return f"Raise `aux_loss_coef` (now {self._coefficient:g}; try {10 * self._coefficient:g})"


METRIC = "alphalora/"
_logger = logging.getLogger(__name__)


class AlphaLoraCallback(TrainerCallback):
    """Tells the load-balancing loss what it counts, and logs what the routers do.

    For any trainer of transformers or TRL: `callbacks=[AlphaLoraCallback()]`, or
    `trainer.add_callback(AlphaLoraCallback())` before training.

    Where the trainer computes the loss itself (preference and reinforcement learning, label
    smoothing, `compute_loss_func`), each micro-batch of a step counts equally in the
    load-balancing loss, or by its share of the step's targets where the model is told their number
    (`num_items_in_batch`), times the scale of fp16's loss scaler. Where the model computes it, the
    load-balancing loss follows that, with or without this callback.

    With every logged training loss go the load-balancing loss and the routers' statistics since
    the last one, over all processes; with every evaluation those of the evaluation. Blocks go to
    the trackers only, since a console cannot show as many numbers. A warning names a router that
    has collapsed, an error one that gave NaN.

    Args:
        blocks_every: Logs of the training loss from one with statistics of each block to the next;
            0 never logs them.
    """

    def __init__(self, blocks_every: int = 10) -> None:
        self.blocks_every = blocks_every
        self._trainer: Trainer | None = None
        self._balancer: LoadBalancer | None = None
        self._logs = 0
        self._collapse = CollapseWatch()

    def attach(self, trainer: Trainer) -> None:
        """Connect with a trainer. Its own events do that, too, once one is fired.

        Args:
            trainer: The trainer; its `log`, `training_step` and `evaluation_loop` are replaced.

        Raises:
            ValueError: If the callback is attached to another trainer already, or the trainer
                would run copies of the model in threads.
        """
        if self._trainer is None:
            self._trainer = trainer
            self._log, self._evaluation_loop = trainer.log, trainer.evaluation_loop
            self._training_step = trainer.training_step
            trainer.log = self.log  # type: ignore[method-assign]
            trainer.training_step = self.training_step  # type: ignore[method-assign]
            trainer.evaluation_loop = self.evaluation_loop  # type: ignore[method-assign]
        elif self._trainer is not trainer:
            raise ValueError("An AlphaLoraCallback serves one trainer: make one for each.")
        model: Any = trainer.model
        balancer = None if model is None else find_balancer(model)
        if balancer is not self._balancer:
            self._balancer = balancer
            if balancer is not None:
                _check_threads(trainer)
                balancer.usage = {"train": UsageMeter(), "eval": UsageMeter()}

    def on_init_end(self, *args: Any, **kwargs: Any) -> None:
        """The trainer is there; its model perhaps not yet."""
        self.attach(_firing_trainer())

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Find the routers of the model that is trained.

        Raises:
            ValueError: If it has no AlphaLoRA adapter.
        """
        trainer = self._trainer or _firing_trainer()
        self.attach(trainer)
        model: Any = trainer.model
        layers = adapted_layers(model)
        if not layers:
            raise ValueError(
                "AlphaLoraCallback: the trainer's model has no AlphaLoRA adapter. Add one with "
                "peft.get_peft_model, or give the trainer its config as `peft_config`."
            )
        coefficient = max(layers[0].aux_loss_coef.values())
        self._collapse = CollapseWatch(coefficient, trainer.state.global_step)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Layers that never ran are named here where the whole model is compiled."""
        trainer, balancer = self._attached()
        model: Any = trainer.model
        balancer.calls.name_idle(model)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own; where no loss of the model's tells, micro-batches count equally."""
        trainer, balancer = self._attached()
        scale = balancer.scale
        before = scale.default, scale.of_shares
        loss_scale = _loss_scale(trainer)
        scale.default = loss_scale / trainer.current_gradient_accumulation_steps
        scale.of_shares = loss_scale * _processes_of_a_share(trainer)
        try:
            return self._training_step(*args, **kwargs)
        finally:
            scale.default, scale.of_shares = before

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own loop, with the balance counted in passes without labels too."""
        balancer = self._balancer
        if balancer is None:
            return self._evaluation_loop(*args, **kwargs)
        model: Any = self._attached()[0].model
        balancer.evaluating = frozenset(find_routers(model))
        # What a prediction has left, which is never logged.
        balancer.pop("eval")
        balancer.usage["eval"] = UsageMeter()
        try:
            return self._evaluation_loop(*args, **kwargs)
        finally:
            balancer.evaluating = frozenset()

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Add the routers' numbers to what the trainer logs; training and evaluation apart."""
        if self._balancer is not None:
            if "loss" in logs:
                self._log_training(logs)
            prefix = next(
                (k.removesuffix("_runtime") for k in logs if k.endswith("_runtime")), None
            )
            if prefix not in (None, "train"):
                self._read("eval", f"{prefix}_{METRIC}", logs)
        self._log(logs, *args, **kwargs)

    def _attached(self) -> tuple[Trainer, LoadBalancer]:
        assert self._trainer is not None and self._balancer is not None
        return self._trainer, self._balancer

    def _log_training(self, logs: dict[str, Any]) -> None:
        trainer, _ = self._attached()
        step, usage = trainer.state.global_step, self._read("train", METRIC, logs)
        if not math.isfinite(logs.get(f"{METRIC}aux_loss", 0.0)):
            self._report_not_finite()
        said = self._collapse.see(usage, step)
        if said is not None and trainer.is_world_process_zero():
            _logger.warning(said)
        if self.blocks_every and self._logs % self.blocks_every == 0:
            self._log_blocks(usage)
        self._logs += 1

    def _read(self, phase: Phase, prefix: str, logs: dict[str, Any]) -> dict[str, RouterUsage]:
        """Add what was measured since the last time; every process must call it."""
        trainer, balancer = self._attached()
        reduce = self._sum_over_ranks if trainer.accelerator.num_processes > 1 else None
        loss = balancer.pop(phase, reduce)
        if loss is not None:
            logs[f"{prefix}aux_loss"] = loss
        model: Any = trainer.model
        usage = balancer.usage[phase].pop(find_routers(model), reduce)
        logs |= {f"{prefix}{name}": value for name, value in summarise(usage.values()).items()}
        return usage

    def _sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        accelerator = self._attached()[0].accelerator
        return accelerator.reduce(values.to(accelerator.device), "sum")

    def _log_blocks(self, usage: dict[str, RouterUsage]) -> None:
        """Hand each block's numbers to the trackers."""
        trainer, _ = self._attached()
        values = {
            f"{METRIC}{block}/{name}": value
            for block, routers in group_by_block(usage).items()
            for name, value in summarise(usage[router] for router in routers).items()
        }
        for callback in trainer.callback_handler.callbacks:
            if values and not is_console(callback):
                callback.on_log(
                    trainer.args,
                    trainer.state,
                    trainer.control,
                    logs=dict(values),
                    model=trainer.model,
                )

    def _report_not_finite(self) -> None:
        """Name the router in which the numbers went wrong: the first in the model's order."""
        trainer, balancer = self._attached()
        modules = balancer.pop_not_finite()
        where = f"{modules[0]} is the first of {len(modules)}" if modules else "they are finite now"
        _logger.error(
            "AlphaLoRA: routers gave NaN or infinity in step %d: %s. What is trained from here on "
            "is of no use. Start again from an earlier checkpoint with a lower `learning_rate`, a "
            "lower `max_grad_norm`, or in bf16 instead of fp16.",
            trainer.state.global_step,
            where,
        )


def _loss_scale(trainer: Any) -> float:
    """What fp16 training multiplies the loss by, for its gradients not to vanish; else 1."""
    if trainer.is_deepspeed_enabled:
        optimizer = getattr(trainer.model_wrapped, "optimizer", None)
        return float(getattr(optimizer, "loss_scale", 1.0))
    scaler = trainer.accelerator.scaler
    return 1.0 if scaler is None else scaler.get_scale()


def _processes_of_a_share(trainer: Trainer) -> int:
    """Processes over which the trainer counts a step's targets, and averages gradients."""
    across = trainer.args.average_tokens_across_devices
    return trainer.accelerator.num_processes if across else 1


def _check_threads(trainer: Trainer) -> None:
    """Refuse `nn.DataParallel`, in which the threads of all GPUs would share a balance's state."""
    quantised = ("is_loaded_in_8bit", "is_loaded_in_4bit")  # which transformers leaves alone
    if trainer.args.n_gpu > 1 and not any(getattr(trainer.model, q, False) for q in quantised):
        raise ValueError(
            f"AlphaLoRA: one process sees {trainer.args.n_gpu} GPUs, and transformers would train "
            "on all of them with nn.DataParallel, in which the load-balancing loss is wrong. Start "
            "a process for each (`accelerate launch`, `torchrun`), or show this one a single GPU "
            "(CUDA_VISIBLE_DEVICES=0)."
        )


def _firing_trainer() -> Trainer:
    """The trainer whose event is being handled.

    Events hand over the trainer's parts, but none that leads to the steps of an accumulation, the
    loss scaler or the log: it is looked for among the callers.

    Raises:
        RuntimeError: If there is none.
    """
    frame: Any = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer):
            return caller
        frame = frame.f_back
    raise RuntimeError(
        "AlphaLoraCallback: no trainer of transformers fired this event. Call "
        "`callback.attach(trainer)` first."
    )
