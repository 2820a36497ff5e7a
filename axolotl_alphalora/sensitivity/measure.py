"""The sensitivity of the loss to each weight matrix on each sample (LoRA-SMoE)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..samples import (
    Passes,
    Sample,
    checkpointed_layers,
    every_second,
    freeze,
    named_layers,
    numbered,
    restored,
    switch_checkpointing_on,
    warn_of_uncalled,
)
from .capture import Capture

_FP16_SCALE = 2.0**16


@dataclass(frozen=True)
class Sensitivity:
    """Squared norms of weight gradients, for every sample alone.

    Attributes:
        tasks: The task of each sample.
        squares: Module name to `||dL_t/dW||_F^2` of each sample t.
    """

    tasks: tuple[str, ...]
    squares: Mapping[str, tuple[float, ...]]

    def by_task(self) -> dict[str, dict[str, float]]:
        """Task to module to `s = sum_t ||dL_t/dW||_F^2` over the task's samples.

        Tasks are in order of appearance, modules in the order of `squares`.
        """
        return {
            task: {
                module: math.fsum(
                    value for value, of in zip(values, self.tasks, strict=True) if of == task
                )
                for module, values in self.squares.items()
            }
            for task in dict.fromkeys(self.tasks)
        }

    def half(self, which: int) -> Sensitivity:
        """Every second sample of each task.

        Args:
            which: 0 for the first, third, ... sample of a task, 1 for the others.

        Raises:
            ValueError: If a task has one sample only.
        """
        for task, count in Counter(self.tasks).items():
            if count < 2:
                raise ValueError(
                    f"The task {task!r} has one sample only, which cannot be halved. Take more."
                )
        kept = [index for index, half in enumerate(every_second(self.tasks)) if half == which]
        return Sensitivity(
            tuple(self.tasks[index] for index in kept),
            {name: tuple(values[i] for i in kept) for name, values in self.squares.items()},
        )


def measure_sensitivity(
    model: nn.Module,
    modules: Sequence[str],
    samples: Sequence[Sample],
    *,
    checkpointing: bool = False,
    autocast: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
) -> Sensitivity:
    """Measure `||dL_t/dW||_F^2` of every named module on every sample t, all in one pass.

    L_t is `model(**inputs).loss` of the sample alone, without dropout. No weight requires a
    gradient and none is updated; nothing is clipped. The model and the random states are left as
    they were found, also after an error.

    Args:
        model: A transformers model; its weights may be quantised by bitsandbytes.
        modules: Names of linear layers: anything called with its input `[..., in]` as the first
            positional argument that returns `[..., out]`.
        samples: The samples; each is moved to the device of the model's input embedding.
        checkpointing: Whether to switch gradient checkpointing on for the time of the measurement.
            Where it is on already it is used as it is.
        autocast: Compute under `torch.autocast` with this dtype.
        progress: Called with the number of samples done, after each.

    Returns:
        The squares, with modules in the order given; 0 where a sample does not run a module.

    Warns:
        UserWarning: If no sample calls a module. Its squares are 0, also where the model uses its
            weight without calling it.

    Raises:
        ValueError: If there are no samples, a module does not exist, is not called like a linear
            layer or has a kernel without a gradient, a loss or gradient is NaN or infinite (names
            module and sample), or the model fails on a sample that is longer than its config's
            `max_position_embeddings`.
        NotImplementedError: If a module's weight is used more than once for one sample, or where
            the model switches gradients off; names the module.
    """
    targets = _targets(model, modules)
    _check_packing(model)
    if not samples:
        raise ValueError("There are no samples to measure the sensitivity on.")
    found: dict[str, list[float]] = {name: [] for name in targets}
    with restored(model), torch.enable_grad():
        if checkpointing:
            switch_checkpointing_on(model)
        freeze(model)
        passes = _Gradients(model, targets, autocast)
        for label, sample in numbered(samples, progress):
            for name, square in zip(targets, passes.squares(sample, label), strict=True):
                found[name].append(square)
    warn_of_uncalled(list(targets), passes.called, "sensitivity")
    squares = {name: tuple(values) for name, values in found.items()}
    return Sensitivity(tuple(sample.task for sample in samples), squares)


class _Gradients:
    """Forward and backward passes of a frozen model, one for each sample."""

    def __init__(
        self, model: Any, targets: Mapping[str, nn.Module], autocast: torch.dtype | None
    ) -> None:
        self._passes = Passes(model, autocast)
        self._names = list(targets)
        dtypes = {autocast, *(parameter.dtype for parameter in model.parameters())}
        self._scale = _FP16_SCALE if torch.float16 in dtypes else 1.0
        self._capture = Capture()
        self._capture.watch(targets)
        self._capture.reach(model.get_input_embeddings(), checkpointed_layers(model))

    @property
    def called(self) -> set[str]:
        """The names of the targets that a sample has called."""
        return self._capture.called

    def squares(self, sample: Sample, label: str) -> list[float]:
        """The squared gradient norm of each target, in their order."""
        inputs = self._passes.inputs(sample)
        scale = self._scale
        while True:
            self._backward(inputs, scale, label)
            squares = [value / scale**2 for value in self._capture.take(self._names)]
            wrong = [n for n, v in zip(self._names, squares, strict=True) if not math.isfinite(v)]
            if not wrong:
                return squares
            if scale == 1:
                raise ValueError(
                    f"The gradient of {wrong[0]} is not finite on {label}. Look for NaN or "
                    "infinity in the model's weights, or compute in bfloat16 or float32."
                )
            # Scaling keeps small float16 gradients; large ones overflow with it, not without.
            scale = max(1.0, scale / 16)

    def _backward(self, inputs: Mapping[str, Tensor], scale: float, label: str) -> None:
        loss, value = self._passes.run(inputs, label, _read_loss)
        if not math.isfinite(value):
            raise ValueError(
                f"The loss of {label} is {value}. Look for labels that are all -100, and for "
                "NaN or infinity in the model's weights."
            )
        (loss.float() * scale).backward()


def _read_loss(output: Any) -> tuple[Tensor, float]:
    # Also waits for CUDA, which tells of a position that is too large only later.
    return output.loss, output.loss.item()


def _targets(model: nn.Module, modules: Sequence[str]) -> dict[str, nn.Module]:
    targets = named_layers(model, modules)
    owners = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    for name, module in targets.items():
        if any(owners[id(weight)] > 1 for weight in module.parameters(recurse=False)):
            raise NotImplementedError(
                f"{name} shares its weight with another module, so its gradient is a sum that "
                "cannot be squared layer by layer. Leave it out of the target modules."
            )
    return targets


def _check_packing(model: nn.Module) -> None:
    for name, module in model.named_modules():
        quant_state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(quant_state, "packing_format_for_cpu", False):
            raise ValueError(
                f"{name} has its 4-bit weights packed for inference, which bitsandbytes does when "
                "a model runs in eval mode on this processor; no gradient passes through it. Load "
                "the model again."
            )
