"""Samples of training data, and running them through a frozen model that is left as it was."""

from .sample import (
    Passes,
    Sample,
    every_second,
    explained,
    named_layers,
    numbered,
    share_out,
    warn_of_uncalled,
)
from .state import checkpointed_layers, freeze, restored, switch_checkpointing_on, without_noise

__all__ = [
    "Passes",
    "Sample",
    "checkpointed_layers",
    "every_second",
    "explained",
    "freeze",
    "named_layers",
    "numbered",
    "restored",
    "share_out",
    "switch_checkpointing_on",
    "warn_of_uncalled",
    "without_noise",
]
