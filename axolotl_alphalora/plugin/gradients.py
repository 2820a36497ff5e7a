"""Sensitivities of the run's own model on the run's own data, as the run would compute them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..planning import Gradients
from ..planning.planner import DEFAULT_SAMPLES
from ..sensitivity import Sample, Sensitivity, measure_sensitivity
from .shared import progress_bar


def gradients(cfg: Any, model: nn.Module) -> Gradients:
    """Return what measures sensitivities of a model on a configuration's training data.

    Args:
        cfg: The host's validated configuration.
        model: The model as the host has loaded it, without an adapter.
    """

    def measure(modules: Sequence[str], options: Any) -> tuple[Sensitivity, Mapping[str, Any]]:
        from .samples import draw_samples

        seed = getattr(options, "seed", 0)
        samples = draw_samples(cfg, getattr(options, "samples", DEFAULT_SAMPLES), seed)
        found = measure_sensitivity(
            model,
            modules,
            samples,
            checkpointing=bool(cfg.gradient_checkpointing),
            autocast=_autocast(cfg),
            progress=progress_bar("gradients", "sample", len(samples)),
        )
        tasks = dict(Counter(sample.task for sample in samples))
        return found, {"tasks": tasks, "seed": seed, "digest": _digest(samples)}

    return measure


def _autocast(cfg: Any) -> torch.dtype | None:
    """The dtype that the run computes in, where it is not the weights' own."""
    if cfg.bf16 and cfg.bf16 != "full":
        return torch.bfloat16
    return torch.float16 if cfg.fp16 else None


def _digest(samples: Sequence[Sample]) -> str:
    """Identify samples by their tasks and tokens."""
    found = hashlib.sha256()
    for sample in samples:
        found.update(sample.task.encode())
        for key in sorted(sample.inputs):
            found.update(key.encode() + sample.inputs[key].numpy().tobytes())
    return found.hexdigest()
