"""What a saved adapter's configuration means, for those who read it without PEFT too."""

from __future__ import annotations

import math
from typing import Any

from packaging.version import InvalidVersion, Version

from . import __version__

__all__ = ["FORMAT_SINCE", "check_version", "expert_scaling"]

FORMAT_SINCE = "0.1.0"
"""The release that introduced the format in which adapters are saved now."""


def expert_scaling(lora_alpha: float, rank: int, use_rslora: bool = False) -> float:
    """Factor on the output of an expert: ``lora_alpha / rank``, ``/ sqrt(rank)`` with rsLoRA.

    Args:
        lora_alpha: The adapter's `lora_alpha`.
        rank: Rank of the expert.
        use_rslora: Whether it is rank-stabilised.
    """
    return lora_alpha / (math.sqrt(rank) if use_rslora else rank)


def check_version(needed: Any) -> None:
    """Check that this release reads an adapter.

    Args:
        needed: The `needs_version` in its `adapter_config.json`.

    Raises:
        ValueError: If a newer release is needed; says which.
    """
    try:
        newer = Version(needed) > Version(__version__)
    except (InvalidVersion, TypeError) as error:
        raise ValueError(f"needs_version must be a version, not {needed!r}.") from error
    if newer:
        raise ValueError(
            f"This adapter needs axolotl-alphalora {needed} or newer, and {__version__} is "
            f"installed: pip install 'axolotl-alphalora>={needed}'."
        )
