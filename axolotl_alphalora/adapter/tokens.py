"""Whose tokens a layer sees: its model's own, those that cross-attention looks at, or others."""

from __future__ import annotations

import inspect
import re
from typing import Any, Literal

from torch import nn

__all__ = ["Tokens", "is_seq2seq", "tokens_of"]

Tokens = Literal["own", "memory", "other"]
"""``own``: the text's, in an encoder-decoder the decoder's; ``memory``: what the decoder's
cross-attention looks at, the encoder's; ``other``: neither, such as an image's patches."""

# As the models of transformers call them; T5 writes EncDecAttention, GPT-2 joins both in c_attn.
_CROSS_ATTENTION = re.compile(r"cross|enc(oder)?_?(dec(oder)?)?_?att", re.IGNORECASE)
_KEY_OR_VALUE = re.compile(
    r"(to_|w)?[kv](_?proj|_lin)?|(key|value|kv|key_value)s?(_?proj(ection)?)?|c_attn", re.IGNORECASE
)


def is_seq2seq(model: nn.Module) -> bool:
    """Whether a model has an encoder and a decoder, each with tokens of its own."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return True
    return "decoder_input_ids" in inspect.signature(type(model).forward).parameters


def tokens_of(model: nn.Module, names: list[str]) -> dict[str, Tokens]:
    """Whose tokens the modules of a base model see.

    Args:
        model: The base model.
        names: Exact names of modules.
    """
    decoder = _path(model, "get_decoder")
    encoder = _path(model, "get_encoder") if is_seq2seq(model) else None
    composite = encoder is None and decoder and _is_composite(model)
    return {name: _tokens(name, decoder, encoder, bool(composite)) for name in names}


def _tokens(name: str, decoder: str | None, encoder: str | None, composite: bool) -> Tokens:
    if encoder and _is_inside(name, encoder):
        return "memory"
    if decoder and _is_inside(name, decoder):
        *path, leaf = name.removeprefix(decoder).split(".")
        crossing = any(_CROSS_ATTENTION.search(part) for part in path)
        return "memory" if crossing and _KEY_OR_VALUE.fullmatch(leaf) else "own"
    # Beside the text model of a multimodal one lie its towers, and at the top the heads.
    return "other" if composite and "." in name else "own"


def _is_inside(name: str, path: str) -> bool:
    return name.startswith(f"{path}.")


def _path(model: nn.Module, getter: str) -> str | None:
    """Name of the submodule that a method of transformers' models returns; None if there is none.

    An empty name stands for the model itself.
    """
    get: Any = getattr(model, getter, None)
    if get is None:
        return None
    found = get()
    return next((name for name, module in model.named_modules() if module is found), None)


def _is_composite(model: nn.Module) -> bool:
    config: Any = getattr(model, "config", None)
    text = getattr(config, "get_text_config", lambda: config)()
    return text is not config
