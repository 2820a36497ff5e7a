"""The section of an output directory's model card that says what the adapter is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Trainer

from ..adapter import AlphaLoraConfig
from ..files import ADAPTER_CARD, write_whole
from ..report.markdown import experts_section

__all__ = ["add_section", "describe_in_cards"]

_START, _END = "<!-- axolotl-alphalora -->", "<!-- /axolotl-alphalora -->"


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
    card = folder / ADAPTER_CARD
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8")
    before, _, rest = text.partition(_START)
    _, end, after = rest.partition(_END)
    if not end:  # by hand, or none yet
        before, after = text, ""
    parts = [before.rstrip(), f"{_START}\n{experts_section(config)}\n{_END}", after.strip()]
    write_whole(card, "\n\n".join(part for part in parts if part) + "\n")
