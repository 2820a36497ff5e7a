"""A model as transformers defines it, without weights: its class, its modules, its linear layers.

Needs transformers, as `weight_names` does; everything else in this package does without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..blocks import block_name
from ..hosts.torch import is_convolution, whole_shape

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


def load_config(
    model: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
) -> Any:
    """Read a model's config.

    Args:
        model: Directory or repository id.
        revision: Branch, tag or commit of a repository.
        trust_remote_code: Whether the model's own code may run.
        gguf_file: Name of a GGUF file in the directory that holds the config.

    Raises:
        ValueError: If it cannot be read.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            model,
            revision=revision,
            trust_remote_code=trust_remote_code,
            **({"gguf_file": gguf_file} if gguf_file else {}),
        )
    except Exception as error:  # config classes raise whatever their checks happen to raise
        raise ValueError(_unopened(model, error)) from error


def skeleton(
    model: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    whole: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Return a model's modules on the meta device: names and sizes, no weights.

    Args:
        model: Directory or repository id.
        revision: Branch, tag or commit of a repository.
        trust_remote_code: Whether the model's own code may run.
        gguf_file: Name of a GGUF file in the directory that holds the config.
        whole: Whether all of the model is meant, or what is trained of it, see
            `definition`.
        overrides: Settings that the config is to have in place of its own.

    Raises:
        ValueError: If the config cannot be read, does not take an override, or transformers has no
            such class for it.
    """
    config = load_config(model, revision, trust_remote_code, gguf_file)
    for key, value in (overrides or {}).items():
        try:
            setattr(config, key, value)
        except Exception as error:  # what the checks of a config raise is no ValueError
            raise ValueError(f"{key}: {value!r}: {error}") from error
    # Quantised or not, the linear layers have the same names.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    factory = (whole_class if whole else trained_class)(config, model)
    try:
        return bare_model(factory, config, trust_remote_code)
    except Exception as error:
        raise ValueError(_unopened(model, error)) from error


def stacked_weights(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the weights inside numbered blocks that hold several matrices, such as experts.

    They are no linear layers: `linear_layers` leaves them out.

    Returns:
        Exact name of the parameter to its shape of three or more dimensions.
    """
    modules = dict(model.named_modules())
    found = {}
    for name, parameter in model.named_parameters():
        owner, shape = modules[name.rpartition(".")[0]], tuple(whole_shape(parameter))
        if len(shape) > 2 and block_name(name) != name and not is_convolution(owner):
            found[name] = shape
    return found


def linear_layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the linear layers inside numbered blocks: not the head, not the embeddings.

    Returns:
        Exact name to (output features, input features), in the model's order.
    """
    from ..hosts.transformers import Conv1D

    shapes = {}
    for name, module in model.named_modules():
        if block_name(name) == name:
            continue
        if isinstance(module, Conv1D):
            shapes[name] = (module.nf, module.nx)
        elif _is_linear(module):
            shapes[name] = (module.out_features, module.in_features)
    return shapes


def _unopened(model: str, error: Exception) -> str:
    said = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
    local = "" if Path(model).exists() else f"there is no directory {model}, and as a hub id "
    return f"the model {model} cannot be opened: {local}{said}"


def _is_linear(module: Any) -> bool:
    """Whether a module is a linear layer, of a quantisation's own class perhaps."""
    if isinstance(module, nn.Linear):
        return True
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return all(isinstance(size, int) for size in sizes) and not any(module.children())


def trained_class(config: Any, model: str) -> Any:
    """Return the class with which a language model of a config is trained.

    It is Axolotl's: a model that takes images beside text is loaded with them, and a Voxtral, which
    takes sound, by its own class.

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

    `architectures` names it. Where that is no model that generates, such as `BartModel`, it is
    the one of most linear layers among those that transformers has for the config.

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
    try:
        return len(linear_layers(bare_model(factory, config)))
    except Exception:  # classes raise whatever a config that is not theirs leads to
        return 0


def _no_language_model(config: Any, model: str) -> str:
    return (
        f"{model} is a {config.model_type} model, for which transformers has no language model "
        "head. Experts are planned for language models."
    )
