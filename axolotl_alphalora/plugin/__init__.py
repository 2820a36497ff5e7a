"""The plugin for Axolotl; its class is `axolotl_alphalora.AlphaLoraPlugin`."""

from typing import Any


def __getattr__(name: str) -> Any:
    hint = ". The class to list in `plugins:` is axolotl_alphalora.AlphaLoraPlugin"
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}{hint if 'lora' in name.lower() else ''}"
    )
