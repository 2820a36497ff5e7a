"""Samples of training data, and running them through a frozen model that is left as it was."""

from .passes import Passes, linear_layers, numbered, warn_of_uncalled
from .sample import Sample, every_second, share_out
from .state import checkpointed_layers, freeze, restored, switch_checkpointing_on, without_noise

__all__ = [
    "Passes",
    "Sample",
    "checkpointed_layers",
    "every_second",
    "freeze",
    "linear_layers",
    "numbered",
    "restored",
    "share_out",
    "switch_checkpointing_on",
    "warn_of_uncalled",
    "without_noise",
]
