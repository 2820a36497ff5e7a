"""Tables in Markdown, and the two model cards: of the experts of a run, and of an export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..allocation import Plan
from ..blocks import group_by_block
from .adapter_sentences import exported
from .adapter_tables import losses_table
from .findings import Findings, differs_within_blocks
from .plan_sentences import summary
from .plan_tables import plan_table
from .quality_sentences import explain_plan
from .tables import MARKDOWN, Cell, Column, Name, Table, names
from .words import WARNING, best_words, shape_line

if TYPE_CHECKING:
    from ..adapter import AlphaLoraConfig
    from ..export import Exported


def markdown_table(table: Table) -> str:
    """Return a table in Markdown, with names as code."""
    table = table.on(MARKDOWN)
    rules = ["---" if column.left else "---:" for column in table.columns]
    rows = [[column.head for column in table.columns], rules]
    rows += [[_text(cell) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def experts_section(config: AlphaLoraConfig) -> str:
    """Say what was planned and why, the counts, and how to load the adapter.

    Args:
        config: The configuration of an adapter with experts.
    """
    assert isinstance(config.num_experts, dict)
    counts = {name: count for name, count in config.num_experts.items() if count}
    routed = [count for count in counts.values() if config.mixture.experts(count) > 1]
    shape = []
    if config.plan is None:  # otherwise the plan's summary says it
        ranks = [config.rank_of(name) for name in counts]
        shape = shape_line(config.mixture, counts.values(), ranks)
    return f"""## Experts (AlphaLoRA)

A mixture of LoRA experts: {sum(counts.values()):,} experts on {len(counts)} linear \
layers of {len(group_by_block(counts))} blocks, of which {len(routed)} have a router that sends \
each token to its {best_words(config.mixture, routed)} best. Rank of an expert: {config.r}; \
`lora_alpha`: {config.lora_alpha:g}.{"".join(f" {line}" for line in shape)}

{_planned(config.plan, counts)}

Load it where axolotl-alphalora is installed:

```python
import axolotl_alphalora  # makes PEFT know the method
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/directory")
```

`alphalora inspect DIR` shows what the experts have become. `alphalora export DIR --data \
rows.jsonl --output LORA` makes a plain LoRA of it, for servers and merges that know no routers, \
measures what that costs, and says which servers take it: vLLM with a large enough \
`--max-lora-rank`, llama.cpp with `--gguf FILE`; SGLang needs `--rank 16 --same-rank`. \
`alphalora probe` asks a server whether it really serves it."""


def export_card(found: Exported, base_model: str | None) -> str:
    """Return the card of an export: what it is, what it costs, and where it loads.

    Args:
        found: The export.
        base_model: What it is for.
    """
    price = found.divergence
    return f"""---
library_name: peft
base_model: {base_model}
tags:
- lora
---

# LoRA of an AlphaLoRA adapter

A plain LoRA that stands in for a mixture of LoRA experts ({found.method}). A mixture chooses its
experts anew for every token, so this is an approximation: {price.kl:.4f} nats of KL divergence per
token from the routed adapter, on {price.rows} rows ({price.tokens:,} tokens;
{found.notes.get("measured_on", "held out")}).

{markdown_table(losses_table(found))}

{" ".join(exported(found))} Everything that was measured is in `alphalora_export.json`.

## Where it loads

{" ".join(found.servers())}

`alphalora probe URL --probe probe.json` asks a server whether it really serves it.
"""


def _planned(document: Mapping[str, Any] | None, counts: Mapping[str, int]) -> str:
    """The plan in words and by block; the layers one by one where blocks are uneven."""
    if document is None:
        return _layers(counts)
    plan = Plan.from_dict(dict(document))
    findings = Findings.of_plan(plan)
    options = ", ".join(f"{key}: {value}" for key, value in plan.strategy["options"].items())
    name = plan.strategy["name"] + (f" ({options})" if options else "")
    said = [*summary(plan), *explain_plan(plan, findings)]
    sound = " ".join(line for line in said if not line.startswith(WARNING))
    parts = [f"Planned by `{name}`. {sound}", markdown_table(plan_table(plan, findings))]
    return "\n\n".join([*parts, _layers(counts)] if differs_within_blocks(plan) else parts)


def _layers(counts: Mapping[str, int]) -> str:
    """The counts of single layers, folded away."""
    layers = [name for block in group_by_block(counts).values() for name in block]
    columns = [names("layer", layers), Column("experts", [str(counts[name]) for name in layers])]
    return (
        "<details><summary>Experts of each layer</summary>\n\n"
        f"{markdown_table(Table(columns))}\n\n</details>"
    )


def _text(cell: Cell) -> str:
    assert isinstance(cell, Name | str), "bars and notes are for other media"
    return f"`{cell.text}`" if isinstance(cell, Name) else cell
