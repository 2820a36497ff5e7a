"""A verb that was given no trained adapter runs a fresh one, and says so loudly."""

from __future__ import annotations

from typing import Any

from transformers import Trainer


def warn_when_evaluated(trainer: Trainer) -> None:
    """Warn, once, if a trainer with a fresh adapter evaluates before it trains.

    Args:
        trainer: Its `evaluation_loop` is replaced.
    """
    evaluate, said = trainer.evaluation_loop, False

    def evaluation_loop(*args: Any, **kwargs: Any) -> Any:
        nonlocal said
        untrained = not trainer.is_in_train and trainer.state.global_step == 0
        if untrained and not said:
            said = True  # the host evaluates several splits
            warn_fresh_adapter("axolotl evaluate")
        return evaluate(*args, **kwargs)

    trainer.evaluation_loop = evaluation_loop  # type: ignore[method-assign]


def warn_fresh_adapter(verb: str) -> None:
    """Say loudly that no trained adapter was named."""
    from .host import get_logger

    get_logger(__name__).warning(
        "\n%s\n%s was given no trained adapter: it runs a fresh AlphaLoRA adapter, which is the "
        "base model unchanged.\nAdd `--lora-model-dir OUTPUT_DIR` (or `lora_model_dir:` in the "
        "YAML) with the run's output directory.\n%s",
        "!" * 88,
        verb,
        "!" * 88,
    )
