"""Training and losses: logits are computed where there is a label, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from axolotl_alphalora.adapter import find_balancer
from axolotl_alphalora.hosts.constants import IGNORED

from ..steps import kept_bytes
from .devices import autocast
from .methods import Built
from .rows import Batch, Row, in_parts, steps

MICRO_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Of one pass, padding included."""


@dataclass(frozen=True)
class Recipe:
    """How every cell is trained: AdamW, linear warm-up, then a cosine to 0."""

    batch: int = 8
    epochs: int = 1
    warmup: float = 0.05
    clip: float = 1.0
    weight_decay: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Its fields by name."""
        return asdict(self)

    def factor(self, step: int, total: int) -> float:
        """What the learning rate of a step is multiplied with; steps count from 0."""
        warm = max(1, round(self.warmup * total))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def token_losses(model: Any, batch: Batch) -> Tensor:
    """Cross-entropy of every label of a batch, row by row: [labels], fp32.

    Args:
        model: A causal language model, or a PEFT model around one.
        batch: The rows.
    """
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = whole.base_model(
        input_ids=batch.ids, attention_mask=batch.mask, use_cache=False
    ).last_hidden_state
    places = batch.targets.ne(IGNORED)
    logits = whole.get_output_embeddings()(hidden[places]).float()
    return F.cross_entropy(logits, batch.targets[places], reduction="none")


def backward(built: Built, rows: Sequence[Row], device: str) -> float:
    """Add the gradient of a step's loss per label to that of the parameters; return the loss.

    The load-balancing loss counts each pass by its share of the labels, as it does where the model
    computes the loss.
    """
    labels = sum(row.tokens for row in rows)
    balancer = find_balancer(built.model)
    total = 0.0
    for part in in_parts(rows, MICRO_TOKENS[device]):
        share = sum(row.tokens for row in part) / labels
        if balancer is not None:
            balancer.scale.default = share
        with autocast(device):
            loss = token_losses(built.model, Batch.of(part, device)).sum() / labels
            whole = loss if built.extra_loss is None else loss + share * built.extra_loss()
        whole.backward()
        total += loss.detach().item()
    return total


def train(
    built: Built, rows: Sequence[Row], recipe: Recipe, rate: float, seed: int, device: str
) -> dict[str, Any]:
    """Train a model, in place.

    Returns:
        `steps`, `train_tokens`, `train_losses` (means over tenths of the run),
        `balance_loss` (mean, before its coefficient) and `kept_bytes` of a token.
    """
    model = built.model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=recipe.weight_decay)
    order = list(steps(rows, recipe.batch, recipe.epochs, seed))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: recipe.factor(step, len(order))
    )
    kept = _kept_per_token(model, order[0], device)
    balancer = find_balancer(model)
    if balancer is not None:
        balancer.pop("train")
    found = []
    for batch in order:
        found.append(backward(built, batch, device))
        torch.nn.utils.clip_grad_norm_(trained, recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    tenth = max(1, len(found) // 10)
    balance = None if balancer is None else balancer.pop("train")
    return {
        "steps": len(order),
        "train_tokens": sum(len(row.ids) for batch in order for row in batch),
        "train_losses": [
            round(fmean(found[at : at + tenth]), 5) for at in range(0, len(found), tenth)
        ],
        "balance_loss": balance and round(balance, 5),
        "kept_bytes": kept,
    }


def _kept_per_token(model: Any, rows: Sequence[Row], device: str) -> int:
    """Bytes that autograd keeps for a token of the first pass."""
    batch = Batch.of(next(in_parts(rows, MICRO_TOKENS[device])), device)

    def loss() -> Tensor:
        with autocast(device):
            return token_losses(model, batch).mean()

    probe: Any = SimpleNamespace(model=model, loss=loss)
    return round(kept_bytes(probe) / batch.ids.numel())
