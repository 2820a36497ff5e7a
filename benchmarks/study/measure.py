"""What is measured of a trained model: losses of held-out rows, and what its routers decide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from axolotl_alphalora.adapter import find_balancer, find_routers
from axolotl_alphalora.adapter.usage import RouterUsage, UsageMeter, combine, summarise
from axolotl_alphalora.inspection.tasks import task_information

from .devices import autocast
from .rows import Batch, Row, in_parts
from .train import MICRO_TOKENS, token_losses

DIGITS = 5


@torch.inference_mode()
def row_losses(model: Any, rows: Sequence[Row], device: str) -> list[float]:
    """Each row's loss in nats, summed over its labels, in the order given."""
    model.eval()
    found: dict[int, float] = {}
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    at = 0
    for part in in_parts([rows[index] for index in order], MICRO_TOKENS[device]):
        with autocast(device):
            losses = token_losses(model, Batch.of(part, device))
        for own in losses.split([row.tokens for row in part]):
            found[order[at]] = own.double().sum().item()
            at += 1
    return [found[index] for index in range(len(rows))]


def held_out(model: Any, rows: Sequence[Row], device: str) -> dict[str, Any]:
    """Losses of held-out rows, per label, by task and by row, and what the routers did on them.

    Returns:
        `held_out` with `loss`, `by_task`, and `rows` (nats) and `labels` of each row,
        task by task; `routers` as `_routers` says, None where there are none.
    """
    balancer, routers = find_balancer(model), find_routers(model)
    usage: dict[str, dict[str, RouterUsage]] = {}
    losses: list[float] = []
    tasks = dict.fromkeys(row.task for row in rows)
    by_task = {}
    ordered = []
    for task in tasks:
        own = [row for row in rows if row.task == task]
        if balancer is not None:
            balancer.evaluating = frozenset(routers)
            balancer.usage = {"eval": UsageMeter()}
        found = row_losses(model, own, device)
        if balancer is not None:
            usage[task] = balancer.usage["eval"].pop(routers)
            balancer.evaluating, balancer.usage = frozenset(), {}
            balancer.pop("eval")
        by_task[task] = round(sum(found) / sum(row.tokens for row in own), DIGITS)
        losses += found
        ordered += own
    labels = [row.tokens for row in ordered]
    return {
        "held_out": {
            "loss": round(sum(losses) / sum(labels), DIGITS + 1),
            "by_task": by_task,
            "rows": [round(loss, DIGITS) for loss in losses],
            "labels": labels,
        },
        "routers": _routers(usage) if routers else None,
    }


def _routers(usage: Mapping[str, Mapping[str, RouterUsage]]) -> dict[str, float]:
    """What routers decided: entropy, largest gate, load, dead experts, in the mean.

    And `dead_worst`, the largest share of dead experts in one layer, and for several tasks
    `specialisation`, the mutual information of task and expert as a part of ln min(experts, tasks).
    """
    names = dict.fromkeys(name for found in usage.values() for name in found)
    whole = {n: combine(f[n] for f in usage.values() if n in f) for n in names}
    numbers = summarise(whole.values())
    choosing = [one for one in whole.values() if one.chooses]
    if choosing:
        numbers["dead_worst"] = max(len(one.dead) / len(one.token_share) for one in choosing)
    if len(usage) > 1:
        told = [_told([f[n] for f in usage.values() if n in f]) for n in names]
        known = [one for one in told if one is not None]
        numbers["specialisation"] = sum(known) / len(known)
    return {name: round(value, DIGITS) for name, value in numbers.items()}


def _told(by_task: Sequence[RouterUsage]) -> float | None:
    """What a router's choice tells of the task; None with fewer than two."""
    if len(by_task) < 2:
        return None
    most = math.log(min(len(by_task), len(by_task[0].token_share)))
    return max(task_information(by_task) / most, 0.0)


def mean_loss(model: Any, rows: Sequence[Row], device: str) -> float:
    """Loss per label."""
    losses = row_losses(model, rows, device)
    return round(sum(losses) / sum(row.tokens for row in rows), DIGITS)
