"""Which class of transformers makes a model of a config: the one that is trained, or all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["bare_model", "trained_class", "whole_class"]

_WHOLE = (
    "AutoModelForImageTextToText",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForMultimodalLM",
    "AutoModelForTextToWaveform",
)
_TRAINED = _WHOLE[:2]
_OWN = {"voxtral": "VoxtralForConditionalGeneration"}
"""Model types that Axolotl loads by the model's own class; neither class of `_TRAINED` knows it."""


def trained_class(config: Any, model: str) -> Any:
    """Return the class with which a language model of a config is trained.

    It is Axolotl's: a model that takes images beside text is loaded with them, and a Voxtral, which
    takes sound, by its own class.

    Args:
        config: The model's config.
        model: Its directory or hub id, for messages.

    Raises:
        ValueError: If transformers has none for it, or it would load a part of the model only,
            such as the decoder of an encoder-decoder.
    """
    from ..hosts.transformers import model_class

    if _has_own_code(config):
        return _of_transformers("AutoModelForCausalLM")
    autos = _autos(_TRAINED, config)
    own = _OWN.get(config.model_type)
    found = _of_transformers(own) if own else autos[0] if autos else None
    if found is None:
        raise ValueError(_no_language_model(config, model))
    whole = whole_class(config, model)
    if model_class(whole, config) is not model_class(found, config):
        part, all_of_it = _layers(found, config), _layers(whole, config)
        if 0 < part < all_of_it:
            raise ValueError(
                f"{model} is a {model_class(whole, config).__name__}. What would be trained of it, "
                f"{model_class(found, config).__name__}, leaves out {all_of_it - part} of its "
                f"{all_of_it} linear layers. Experts are planned for language models that are "
                "loaded whole."
            )
    return found


def whole_class(config: Any, model: str) -> Any:
    """Return the class that makes all of a model: the one that its weights were saved from.

    ``architectures`` names it. Where that is no model that generates, such as ``BartModel``, it is
    the one of most linear layers among those that transformers has for the config.

    Args:
        config: The model's config.
        model: Its directory or hub id, for messages.

    Raises:
        ValueError: If transformers has none for it.
    """
    from ..hosts.transformers import model_class

    if _has_own_code(config):
        return _of_transformers("AutoModelForCausalLM")
    autos = _autos(_WHOLE, config)
    for name in config.architectures or []:
        for auto in autos:
            if model_class(auto, config).__name__ == name:
                return auto
        if _generates(name, config):
            return _of_transformers(name)
    if not autos:
        raise ValueError(_no_language_model(config, model))
    if len({model_class(auto, config) for auto in autos}) == 1:
        return autos[0]
    return max(autos, key=lambda auto: _layers(auto, config))


def bare_model(factory: Any, config: Any, trust_remote_code: bool = False) -> nn.Module:
    """Make a model on the meta device: names and sizes, no weights.

    Args:
        factory: An auto class, or a model's own.
        config: Its config, which is left as it is.
        trust_remote_code: Whether the model's own code may run.
    """
    from ..hosts.transformers import from_config

    with torch.device("meta"):
        return from_config(factory, config, trust_remote_code)


def _of_transformers(name: str) -> Any:
    import transformers

    return getattr(transformers, name)


def _autos(names: Sequence[str], config: Any) -> list[Any]:
    from ..hosts.transformers import knows

    return [auto for auto in map(_of_transformers, names) if knows(auto, config)]


def _has_own_code(config: Any) -> bool:
    return "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})


def _generates(name: str, config: Any) -> bool:
    """Whether a name is that of a generating model of transformers, for this kind of config."""
    import transformers

    found = getattr(transformers, name, None)
    return (
        isinstance(found, type)
        and issubclass(found, transformers.PreTrainedModel)
        and found.config_class is type(config)
        and found.can_generate()
    )


def _layers(factory: Any, config: Any) -> int:
    """The number of linear layers in the blocks of a model; 0 if the class cannot be made."""
    from .definition import linear_layers

    try:
        return len(linear_layers(bare_model(factory, config)))
    except Exception:  # classes raise whatever a config that is not theirs leads to
        return 0


def _no_language_model(config: Any, model: str) -> str:
    return (
        f"{model} is a {config.model_type} model, for which transformers has no language model "
        "head. Experts are planned for language models."
    )
