"""What it costs to replace the routed experts by something else, in KL divergence and loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..hosts.constants import IGNORED
from ..sensitivity.samples import Sample
from .usage import inputs_for

__all__ = ["Price", "measure_price"]


@dataclass(frozen=True)
class Price:
    """Means over the tokens with a label, in nats.

    Attributes:
        rows: Number of sequences.
        tokens: Number of tokens with a label.
        kl: KL divergence of the export's next-token distribution from the routed adapter's,
            KL(routed || export).
        loss_routed: Cross-entropy of the routed adapter.
        loss_export: Cross-entropy of the export.
        loss_base: Cross-entropy of the base model.
    """

    rows: int
    tokens: int
    kl: float
    loss_routed: float
    loss_export: float
    loss_base: float

    def to_dict(self) -> dict[str, float]:
        """The numbers, with the perplexities."""
        losses = {key: value for key, value in asdict(self).items() if key.startswith("loss_")}
        perplexities = {
            key.replace("loss", "perplexity"): math.exp(min(value, 700.0))
            for key, value in losses.items()
        }
        return asdict(self) | perplexities


@torch.inference_mode()
def measure_price(
    model: Any,
    samples: Sequence[Sample],
    routed: str = "default",
    export: str = "export",
    progress: Callable[[Sample], None] | None = None,
) -> Price:
    """Measure an export that is a second adapter of the same `PeftModel`.

    Args:
        model: The model with both adapters; it is left in evaluation mode with the routed one
            active and frozen.
        samples: Single sequences with labels.
        routed: Name of the routed adapter.
        export: Name of the export.
        progress: Called after each sample.
    """
    model.eval()
    sums = dict.fromkeys(("kl", "routed", "export", "base"), 0.0)
    tokens = 0
    for sample in samples:
        inputs = inputs_for(model, sample)
        labels = inputs.pop("labels")[0, 1:]
        places = labels.ne(IGNORED).nonzero().flatten()
        answers = labels[places]
        model.set_adapter(routed, inference_mode=True)
        of_routed = _log_probabilities(model, inputs, places)
        model.set_adapter(export, inference_mode=True)
        of_export = _log_probabilities(model, inputs, places)
        sums["kl"] += float(F.kl_div(of_export, of_routed, log_target=True, reduction="sum"))
        sums["routed"] += float(F.nll_loss(of_routed, answers, reduction="sum"))
        sums["export"] += float(F.nll_loss(of_export, answers, reduction="sum"))
        del of_routed, of_export
        with model.disable_adapter():
            of_base = _log_probabilities(model, inputs, places)
        sums["base"] += float(F.nll_loss(of_base, answers, reduction="sum"))
        tokens += len(answers)
        if progress is not None:
            progress(sample)
    model.set_adapter(routed, inference_mode=True)
    mean = {key: value / tokens for key, value in sums.items()}
    return Price(
        len(samples), tokens, max(mean["kl"], 0.0), mean["routed"], mean["export"], mean["base"]
    )


def _log_probabilities(model: Any, inputs: dict[str, Tensor], places: Tensor) -> Tensor:
    """Log-probabilities of the next token at some places of one sequence: [P, V], fp32."""
    logits = model(**inputs, use_cache=False).logits[0, places]
    return F.log_softmax(logits.float(), dim=-1)
