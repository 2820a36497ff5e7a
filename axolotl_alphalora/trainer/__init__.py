"""What a trainer of transformers or TRL needs to know of the routers. Knows nothing of Axolotl."""

from .callback import AlphaLoraCallback

__all__ = ["AlphaLoraCallback"]
