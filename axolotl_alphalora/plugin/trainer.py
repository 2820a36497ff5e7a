"""What the host's trainer, whichever it is, needs to know of the routers, and what it logs."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from ..adapter import find_routers
from ..adapter.balance import LoadBalancer, Phase
from ..adapter.usage import RouterUsage, UsageMeter, summarise
from ..blocks import group_by_block
from .collapse import CollapseWatch

METRIC = "alphalora/"
_CONSOLE = (PrinterCallback, ProgressCallback)
_CONSOLE_OF_TRL = "RichProgressCallback"


class AlphaLoraCallback(TrainerCallback):
    """Sets the loss's scale for trainers that compute their own loss; logs what the routers do.

    With every logged training loss go the load-balancing loss and the routers' statistics since
    the last one, over all processes; with every evaluation those of the evaluation. Blocks go to
    the trackers only, since a console cannot show as many numbers.

    Args:
        trainer: The trainer that the callback belongs to.
        balancer: The adapted model's balancer.
        fresh: Whether the adapter is new, and so nothing to evaluate.
        coefficient: The run's `aux_loss_coef`.
        blocks_every: Logs of the training loss from one with statistics of each block to the next;
            0 never logs them.
    """

    def __init__(
        self,
        trainer: Trainer,
        balancer: LoadBalancer,
        fresh: bool,
        coefficient: float = 0.0,
        blocks_every: int = 10,
    ) -> None:
        self.trainer = trainer
        self.balancer = balancer
        self.fresh = fresh
        self.blocks_every = blocks_every
        self._logs = 0
        self._collapse = CollapseWatch(coefficient)
        balancer.usage = {"train": UsageMeter(), "eval": UsageMeter()}
        self._log = trainer.log
        self._evaluation_loop = trainer.evaluation_loop
        trainer.log = self.log  # type: ignore[method-assign]
        trainer.evaluation_loop = self.evaluation_loop  # type: ignore[method-assign]

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Where the probe on the model's loss does not fire, each micro-batch counts equally."""
        scaler = self.trainer.accelerator.scaler  # of fp16 training
        loss_scale = 1.0 if scaler is None else scaler.get_scale()
        steps = self.trainer.current_gradient_accumulation_steps
        self.balancer.scale.default = loss_scale / steps

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """From here on, what is evaluated is being trained."""
        self.fresh = False
        self._collapse.start(self.trainer.state.global_step)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own loop, with the balance counted in passes without labels too."""
        if self.fresh:
            self.fresh = False  # the host evaluates several splits
            warn_fresh_adapter("axolotl evaluate")
        self.balancer.evaluating = True
        try:
            return self._evaluation_loop(*args, **kwargs)
        finally:
            self.balancer.evaluating = False

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Add the routers' numbers to what the trainer logs; training and evaluation apart."""
        if "loss" in logs:
            usage = self._read("train", METRIC, logs)
            if not math.isfinite(logs.get(f"{METRIC}aux_loss", 0.0)):
                self._report_not_finite()
            self._collapse.see(usage, self.trainer.state.global_step)
            if self.blocks_every and self._logs % self.blocks_every == 0:
                self._log_blocks(usage)
            self._logs += 1
        prefix = next((k.removesuffix("_runtime") for k in logs if k.endswith("_runtime")), None)
        if prefix not in (None, "train"):
            self._read("eval", f"{prefix}_{METRIC}", logs)
        self._log(logs, *args, **kwargs)

    def _read(self, phase: Phase, prefix: str, logs: dict[str, Any]) -> dict[str, RouterUsage]:
        """Add what was measured since the last time; every process must call it."""
        reduce = self._sum_over_ranks if self.trainer.accelerator.num_processes > 1 else None
        loss = self.balancer.pop(phase, reduce)
        if loss is not None:
            logs[f"{prefix}aux_loss"] = loss
        model: Any = self.trainer.model
        usage = self.balancer.usage[phase].pop(find_routers(model), reduce)
        logs |= {f"{prefix}{name}": value for name, value in summarise(usage.values()).items()}
        return usage

    def _sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        accelerator = self.trainer.accelerator
        return accelerator.reduce(values.to(accelerator.device), "sum")

    def _log_blocks(self, usage: dict[str, RouterUsage]) -> None:
        """Hand each block's numbers to the trackers."""
        trainer = self.trainer
        values = {
            f"{METRIC}{block}/{name}": value
            for block, routers in group_by_block(usage).items()
            for name, value in summarise(usage[router] for router in routers).items()
        }
        for callback in trainer.callback_handler.callbacks:
            console = isinstance(callback, _CONSOLE) or type(callback).__name__ == _CONSOLE_OF_TRL
            if values and not console:
                callback.on_log(
                    trainer.args,
                    trainer.state,
                    trainer.control,
                    logs=dict(values),
                    model=trainer.model,
                )

    def _report_not_finite(self) -> None:
        """Name the router in which the numbers went wrong: the first in the model's order."""
        modules = self.balancer.pop_not_finite()
        where = f"{modules[0]} is the first of {len(modules)}" if modules else "they are finite now"
        _logger().error(
            "AlphaLoRA: routers gave NaN or infinity in step %d: %s. What is trained from here on "
            "is of no use. Start again from an earlier checkpoint with a lower `learning_rate`, a "
            "lower `max_grad_norm`, or in bf16 instead of fp16.",
            self.trainer.state.global_step,
            where,
        )


def warn_fresh_adapter(verb: str) -> None:
    """Say loudly that no trained adapter was named."""
    _logger().warning(
        "\n%s\n%s was given no trained adapter: it runs a fresh AlphaLoRA adapter, which is the "
        "base model unchanged.\nAdd `--lora-model-dir OUTPUT_DIR` (or `lora_model_dir:` in the "
        "YAML) with the run's output directory.\n%s",
        "!" * 88,
        verb,
        "!" * 88,
    )


def _logger() -> Any:
    from axolotl.utils.logging import get_logger

    return get_logger(__name__)
