"""The section of an output directory's model card that says what the adapter is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Trainer

from ..adapter import AlphaLoraConfig
from ..allocation import Plan
from ..blocks import group_by_block
from ..files import write_whole

__all__ = ["add_section", "describe_in_cards", "section"]

_START, _END = "<!-- axolotl-alphalora -->", "<!-- /axolotl-alphalora -->"
_CARD = "README.md"


def describe_in_cards(trainer: Trainer) -> None:
    """Have every model card that a trainer or its PEFT model writes end in our section.

    Args:
        trainer: The trainer; its `create_model_card` and the model's `create_or_update_model_card`
            are replaced.
    """
    model: Any = trainer.model
    of_model, of_trainer = model.create_or_update_model_card, trainer.create_model_card
    config: AlphaLoraConfig = model.peft_config["default"]

    def from_model(output_dir: str) -> None:
        of_model(output_dir)
        add_section(Path(output_dir), config)

    def from_trainer(*args: Any, **kwargs: Any) -> None:
        of_trainer(*args, **kwargs)
        if trainer.is_world_process_zero() and trainer.args.output_dir is not None:
            add_section(Path(trainer.args.output_dir), config)

    model.create_or_update_model_card = from_model
    trainer.create_model_card = from_trainer  # type: ignore[method-assign]


def add_section(folder: Path, config: AlphaLoraConfig) -> None:
    """Put our section at the end of a model card, in place of an earlier one.

    Args:
        folder: Where the card is; without one nothing is written.
        config: The adapter's configuration.
    """
    card = folder / _CARD
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8")
    before, _, rest = text.partition(_START)
    _, end, after = rest.partition(_END)
    if not end:  # by hand, or none yet
        before, after = text, ""
    parts = [before.rstrip(), f"{_START}\n{section(config)}\n{_END}", after.strip()]
    write_whole(card, "\n\n".join(part for part in parts if part) + "\n")


def section(config: AlphaLoraConfig) -> str:
    """Say in Markdown what was planned and why, the counts, and how to load the adapter."""
    assert isinstance(config.num_experts, dict)
    counts = {name: count for name, count in config.num_experts.items() if count}
    blocks = group_by_block(counts)
    routed = sum(count > 1 for count in counts.values())
    lines = [
        "## Experts (AlphaLoRA)",
        "",
        f"A mixture of LoRA experts: {sum(counts.values()):,} experts on {len(counts)} linear "
        f"layers of {len(blocks)} blocks, of which {routed} have a router that sends each token to "
        f"its {config.top_k} best. Rank of an expert: {config.r}; `lora_alpha`: "
        f"{config.lora_alpha:g}.",
        "",
        *_planned(config.plan, counts),
        "",
        "Load it with `pip install axolotl-alphalora`:",
        "",
        "```python",
        "import axolotl_alphalora  # makes PEFT know the method",
        "from peft import AutoPeftModelForCausalLM",
        "",
        'model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/directory")',
        "```",
        "",
        "`alphalora inspect DIR` shows what the experts have become. `alphalora export DIR --data "
        "rows.jsonl --output LORA` makes a plain LoRA of it, for servers and merges that know no "
        "routers, measures what that costs, and says which servers take it: vLLM with a large "
        "enough `--max-lora-rank`; llama.cpp and SGLang need `--rank 16 --same-rank`.",
    ]
    return "\n".join(lines)


def _planned(document: dict[str, Any] | None, counts: dict[str, int]) -> list[str]:
    """The plan in words and by block; the layers one by one where blocks are uneven."""
    from ..cli.explain import WARNING, explain
    from ..cli.findings import Findings
    from ..cli.summary import differs_within_blocks, summary

    if document is None:
        return _layers(counts)
    plan = Plan.from_dict(document)
    options = ", ".join(f"{key}: {value}" for key, value in plan.strategy["options"].items())
    name = plan.strategy["name"] + (f" ({options})" if options else "")
    said = list(summary(plan))
    findings = Findings.of_plan(plan)
    if findings is not None:
        experts = {unit.name: unit.experts for unit in plan.units}
        said += [line for line in explain(findings, experts) if not line.startswith(WARNING)]
    lines = [f"Planned by `{name}`. {' '.join(said)}", "", *_blocks(plan, findings)]
    return [*lines, "", *_layers(counts)] if differs_within_blocks(plan) else lines


def _blocks(plan: Plan, findings: Any) -> list[str]:
    """A table of the blocks with what spoke for their numbers."""
    from ..cli.scores import BlockScores
    from ..cli.tables import parameters_of_blocks
    from ..cli.words import numeral

    scores, parameters = BlockScores.of(plan, findings), parameters_of_blocks(plan)
    head = ["block", *([scores.name] if scores.values else []), "experts", "trainable"]
    rows = [
        [
            f"`{block}`",
            *([scores.text(block)] if scores.values else []),
            numeral(number),
            f"{parameters[block]:,}",
        ]
        for block, number in plan.block_numbers.items()
    ]
    return _table(head, rows)


def _layers(counts: dict[str, int]) -> list[str]:
    """The counts of single layers, folded away."""
    names = [name for block in group_by_block(counts).values() for name in block]
    return [
        "<details><summary>Experts of each layer</summary>",
        "",
        *_table(["layer", "experts"], [[f"`{name}`", str(counts[name])] for name in names]),
        "",
        "</details>",
    ]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
