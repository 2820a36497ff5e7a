"""What each of the host's commands means for a routed adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import host

if TYPE_CHECKING:
    from transformers import Trainer

RUNS_ADAPTER = ("evaluate", "inference")
"""Verbs that run an adapter which is there."""

WHOLE_MODEL: Mapping[str, str] = {
    "quantize": "quantises a whole model",
    "export": "converts a whole model to GGUF",
    "vllm_serve": "serves a whole model or plain LoRA with vLLM",
}
"""Verbs that need one weight per layer; `merge-lora` sets an option, which is refused."""


def check_verb(verb: str | None) -> None:
    """Refuse a command that cannot work with experts chosen per token.

    Raises:
        ValueError: If the command needs a merged model; names it.
    """
    if verb is not None and verb in WHOLE_MODEL:
        raise ValueError(
            f"`axolotl {verb.replace('_', '-')}` {WHOLE_MODEL[verb]}, but a routed adapter "
            "(`adapter: alphalora`) chooses experts per token, so there is no single weight to "
            "merge. Make a plain LoRA of it first (`alphalora export OUTPUT_DIR --data CONFIG.yml "
            "--output LORA_DIR`), serve the routed adapter itself (`alphalora serve OUTPUT_DIR`), "
            "or load it beside its base model with PEFT after `import axolotl_alphalora.adapter`."
        )


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
    host.get_logger(__name__).warning(
        "\n%s\n%s was given no trained adapter: it runs a fresh AlphaLoRA adapter, which is the "
        "base model unchanged.\nAdd `--lora-model-dir OUTPUT_DIR` (or `lora_model_dir:` in the "
        "YAML) with the run's output directory.\n%s",
        "!" * 88,
        verb,
        "!" * 88,
    )
