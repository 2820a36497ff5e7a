"""The names of transformers that are private, or in places that may move, and what they are for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn
from transformers.conversion_mapping import (
    get_model_conversion_mapping,  # how a model's stored tensors are renamed, fused and split
)
from transformers.core_model_loading import (
    WeightConverter,  # an entry of that mapping that computes
    WeightRenaming,  # one that renames
    dot_natural_key,  # the order in which stored tensors are converted
    rename_source_key,  # what a stored tensor is called in the model
)
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,  # where the host does not prepare a quantised base
)
from transformers.loss.loss_utils import (
    LOSS_MAPPING,  # which loss a model has
    ForCausalLMLoss,  # the one that shifts its labels
)
from transformers.modeling_layers import (
    GradientCheckpointingLayer,  # a layer that is checkpointed in training mode only
)
from transformers.pytorch_utils import (
    Conv1D,  # GPT-2's linear layer, which stores its weight transposed
)
from transformers.quantizers.auto import (
    AutoHfQuantizer,  # whether a quantisation method is known
)
from transformers.quantizers.quantizers_utils import (
    should_convert_module,  # which linear layers bitsandbytes leaves alone
)
from transformers.utils.logging import (
    tqdm as progress,  # a bar in the run's output, by the run's own verbosity
)

from .constants import TRL_CONSOLE


def is_console(callback: Any) -> bool:
    """Whether a trainer's callback writes to a console: transformers' two, and TRL's by its name.

    TRL need not be installed, and takes seconds to import.
    """
    # Not above: these import PEFT, which brings us here before they are there.
    from transformers import PrinterCallback, ProgressCallback

    known = isinstance(callback, PrinterCallback | ProgressCallback)
    return known or type(callback).__name__ == TRL_CONSOLE


def knows(auto: Any, config: Any) -> bool:
    """Whether an auto class has a model class for a config; asking it is no part of its API."""
    return type(config) in auto._model_mapping


def model_class(factory: Any, config: Any) -> Any:
    """The class that an auto class makes of a config; another class is its own."""
    if not hasattr(factory, "_model_mapping"):
        return factory
    found = factory._model_mapping[type(config)]
    return found[0] if isinstance(found, tuple) else found


def from_config(factory: Any, config: Any, trust_remote_code: bool = False) -> nn.Module:
    """Make a model of a config: only auto classes have a public way to."""
    config = copy.deepcopy(config)
    if hasattr(factory, "_model_mapping"):
        return factory.from_config(config, trust_remote_code=trust_remote_code)
    return factory._from_config(config)


def ignored_keys(model: Any) -> tuple[str, ...]:
    """Patterns of stored tensors that a model leaves out on purpose."""
    return tuple(model._keys_to_ignore_on_load_unexpected or ())


def tied_weights(model: Any) -> Mapping[str, str]:
    """Name of each weight that is another's twin, to that other's name."""
    return getattr(model, "all_tied_weights_keys", None) or {}


def wrap_checkpointing(layer: Any, wrapper: Callable[..., Any], *more: Any) -> None:
    """Have a layer recompute its forward by `wrapper`, which gets what did it before, and more."""
    layer._gradient_checkpointing_func = partial(wrapper, layer._gradient_checkpointing_func, *more)


def set_checkpointing(layer: Any, function: Callable[..., Any]) -> None:
    """Have a layer recompute its forward with a function such as torch's `checkpoint`."""
    layer.gradient_checkpointing = True
    layer._gradient_checkpointing_func = function


def quantiser(model: Any) -> Any:
    """What quantised a model as it was loaded, an `HfQuantizer`; None if nothing did."""
    return getattr(model, "hf_quantizer", None)
