"""The export's model card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..adapter import AlphaLoraConfig

if TYPE_CHECKING:
    from .run import Exported

__all__ = ["card"]


def card(found: Exported, config: AlphaLoraConfig) -> str:
    """Say in Markdown what the export is and what it costs.

    Args:
        found: The export.
        config: The routed adapter's configuration.
    """
    price = found.price
    numbers = price.to_dict()
    rows = "\n".join(
        f"| {label} | {numbers[f'loss_{key}']:.4f} | {numbers[f'perplexity_{key}']:.3f} |"
        for label, key in (("base model", "base"), ("routed", "routed"), ("this LoRA", "export"))
    )
    return f"""---
library_name: peft
base_model: {config.base_model_name_or_path}
tags:
- lora
---

# LoRA of an AlphaLoRA adapter

A plain LoRA that stands in for a mixture of LoRA experts ({found.method}). A mixture chooses its
experts anew for every token, so this is an approximation: {price.kl:.4f} nats of KL divergence per
token from the routed adapter, on {price.rows} rows ({price.tokens:,} tokens;
{found.notes.get("measured_on", "held out")}).

| | loss per token | perplexity |
| --- | ---: | ---: |
{rows}

{" ".join(found.sentences())} Everything that was measured is in `alphalora_export.json`.

## Where it loads

{" ".join(found.servers())}
"""
