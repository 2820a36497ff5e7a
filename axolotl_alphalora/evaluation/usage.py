"""What the routers of a trained adapter decide on samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..adapter import find_balancer, find_routers
from ..adapter.usage import RouterUsage, UsageMeter, combine
from ..inspection import ALL
from ..sensitivity import Sample


def inputs_for(model: nn.Module, sample: Sample) -> dict[str, torch.Tensor]:
    """A sample's arguments, where the model is."""
    device = next(model.parameters()).device
    return {key: value.to(device) for key, value in sample.inputs.items()}


@torch.inference_mode()
def router_usage(
    model: nn.Module,
    samples: Sequence[Sample],
    progress: Callable[[Sample], None] | None = None,
) -> dict[str, dict[str, RouterUsage]]:
    """Run samples through a model and read what its routers decide.

    Args:
        model: The adapted model; it is left in evaluation mode.
        samples: Single sequences.
        progress: Called after each sample.

    Returns:
        Task to module name to usage. `ALL` comes first; the tasks follow if there are several.
        A model without routers gives an empty mapping.

    Raises:
        ValueError: If a task has the name that stands for all of them.
    """
    if any(sample.task == ALL for sample in samples):
        raise ValueError(f"a task is called {ALL!r}, which stands for all tasks: rename it.")
    model.eval()
    balancer = find_balancer(model)
    routers = find_routers(model)
    if balancer is None or not routers:
        return {ALL: {}}
    before = balancer.usage
    tasks: dict[str, dict[str, RouterUsage]] = {}
    try:
        for task in dict.fromkeys(sample.task for sample in samples):
            meter = UsageMeter()
            balancer.usage = {"eval": meter}
            for sample in (sample for sample in samples if sample.task == task):
                model(**inputs_for(model, sample))
                if progress is not None:
                    progress(sample)
            found = meter.pop(routers)
            tasks[task] = {name.rpartition(".")[0]: usage for name, usage in found.items()}
    finally:
        balancer.usage = before
        balancer.pop("eval")
    modules = dict.fromkeys(module for found in tasks.values() for module in found)
    whole = {m: combine(found[m] for found in tasks.values() if m in found) for m in modules}
    return {ALL: whole} | (tasks if len(tasks) > 1 else {})
