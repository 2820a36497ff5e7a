"""Writes down what an adapter and its base answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..hosts.constants import IGNORED
from ..hosts.peft import BaseTunerLayer
from ..samples import Sample
from .answers import ADAPTER, BASE, SCALES, Asked, Probe
from .asking import ask_model

PROMPTS, TOKENS = 6, 16
_LONGEST = 256


def prompts_of(samples: Sequence[Sample], tokenizer: Any, count: int = PROMPTS) -> list[str]:
    """Take what comes before the answers of some rows, as text.

    Args:
        samples: Rows, task by task; they are taken from all of them.
        tokenizer: Which made their tokens.
        count: Prompts at most.

    Returns:
        Texts that differ. Of a row that is predicted from its beginning on, its first half.
    """
    found: list[str] = []
    for sample in samples:
        ids = sample.inputs["input_ids"][0].tolist()
        labels = sample.inputs["labels"][0].tolist()
        first = next((place for place, label in enumerate(labels) if label != IGNORED), 0)
        ids = ids[: first if first > 1 else (len(ids) + 1) // 2][-_LONGEST:]
        if ids and ids[0] == tokenizer.bos_token_id:  # which it adds again
            ids = ids[1:]
        text = tokenizer.decode(ids)
        if text.strip() and text not in found:
            found.append(text)
    step = max(len(found) / count, 1.0)
    return [found[int(place * step)] for place in range(min(count, len(found)))]


def make_probe(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    base_model: str,
    method: str,
    tokens: int = TOKENS,
    step: Callable[[str], None] | None = None,
) -> Probe:
    """Ask a model with its active adapter, without it, and with it at wrong scales.

    Args:
        model: The `PeftModel`; its adapter stays as it is.
        tokenizer: Its tokenizer.
        prompts: What to ask.
        base_model: Name of the base.
        method: How the adapter computes.
        tokens: Length of an answer at most.
        step: Called after each prompt.
    """
    model.eval()
    asked = []
    for prompt in prompts:
        answers = {ADAPTER: ask_model(model, tokenizer, prompt, tokens)}
        with model.disable_adapter():
            answers[BASE] = ask_model(model, tokenizer, prompt, tokens)
        for name, factor in SCALES.items():
            with scaled(model, factor):
                answers[name] = ask_model(model, tokenizer, prompt, tokens)
        asked.append(Asked(prompt, answers))
        if step is not None:
            step(prompt)
    return Probe(base_model, method, tokens, asked)


@contextmanager
def scaled(model: Any, factor: float) -> Iterator[None]:
    """Multiply what the active adapters add, for a while."""
    layers = [
        (module, name)
        for module in model.modules()
        if isinstance(module, BaseTunerLayer) and hasattr(module, "scaling")
        for name in module.active_adapters
        if name in module.scaling
    ]
    before = [layer.scaling[name] for layer, name in layers]
    try:
        for layer, name in layers:
            layer.scaling[name] *= factor
        yield
    finally:
        for (layer, name), value in zip(layers, before, strict=True):
            layer.scaling[name] = value
