"""What the host's trainer, whichever it is, needs to know of the load-balancing loss."""

from __future__ import annotations

import math
from typing import Any

from transformers import Trainer, TrainerCallback

from ..adapter.balance import LoadBalancer

METRIC = "alphalora/aux_loss"


class AlphaLoraCallback(TrainerCallback):
    """Sets the loss's scale for trainers that compute their own loss; logs its value.

    Args:
        trainer: The trainer that the callback belongs to.
        balancer: The adapted model's balancer.
        fresh: Whether the adapter is new, and so nothing to evaluate.
    """

    def __init__(self, trainer: Trainer, balancer: LoadBalancer, fresh: bool) -> None:
        self.trainer = trainer
        self.balancer = balancer
        self.fresh = fresh
        self._log = trainer.log
        self._evaluation_loop = trainer.evaluation_loop
        trainer.log = self.log  # type: ignore[method-assign]
        trainer.evaluation_loop = self.evaluation_loop  # type: ignore[method-assign]

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Where the probe on the model's loss does not fire, each micro-batch counts equally."""
        scaler = self.trainer.accelerator.scaler  # of fp16 training
        loss_scale = 1.0 if scaler is None else scaler.get_scale()
        steps = self.trainer.current_gradient_accumulation_steps
        self.balancer.default_scale = loss_scale / steps

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """From here on, what is evaluated is being trained."""
        self.fresh = False

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
        """Add the load-balancing loss to what the trainer logs; training and evaluation apart."""
        if "loss" in logs:
            value = self.balancer.pop("train")
            _add(logs, METRIC, value)
            if value is not None and not math.isfinite(value):
                self._report_not_finite()
        prefix = next((k.removesuffix("_runtime") for k in logs if k.endswith("_runtime")), None)
        if prefix is not None:
            _add(logs, f"{prefix}_{METRIC}", self.balancer.pop("eval"))
        self._log(logs, *args, **kwargs)

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


def _add(logs: dict[str, Any], name: str, value: float | None) -> None:
    if value is not None:
        logs[name] = value
