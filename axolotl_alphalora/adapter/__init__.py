"""AlphaLoRA as a PEFT method: importing this package makes PEFT know `ALPHALORA`."""

from typing import Any

from ..hosts.peft import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from .config import AlphaLoraConfig, AlphaLoraPeftType
from .layer import AlphaLoraLayer
from .model import AlphaLoraModel, adapted_layers, find_balancer, find_routers
from .targets import resolve_targets

__all__ = [
    "AlphaLoraConfig",
    "AlphaLoraLayer",
    "AlphaLoraModel",
    "adapted_layers",
    "find_balancer",
    "find_routers",
    "resolve_targets",
]

_METHOD: Any = AlphaLoraPeftType.ALPHALORA
PEFT_TYPE_TO_CONFIG_MAPPING[_METHOD] = AlphaLoraConfig
PEFT_TYPE_TO_TUNER_MAPPING[_METHOD] = AlphaLoraModel
PEFT_TYPE_TO_PREFIX_MAPPING[_METHOD] = AlphaLoraModel.prefix
