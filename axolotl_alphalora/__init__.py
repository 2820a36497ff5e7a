"""AlphaLoRA for Axolotl: mixtures of LoRA experts whose number differs from block to block.

The names below are loaded on first use: the command line must start without PEFT or Axolotl.
`import axolotl_alphalora.adapter` is what makes `PeftModel.from_pretrained` know the method.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapter import AlphaLoraConfig, AlphaLoraModel
    from .analysis import analyze
    from .plugin.plugin import AlphaLoraPlugin

__version__ = "0.1.0"

__all__ = ["AlphaLoraConfig", "AlphaLoraModel", "AlphaLoraPlugin", "analyze"]

_HOMES = {
    "AlphaLoraConfig": ".adapter",
    "AlphaLoraModel": ".adapter",
    "AlphaLoraPlugin": ".plugin.plugin",
    "analyze": ".analysis",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        hint = ""
        if "plugin" in name.lower() or "lora" in name.lower():
            hint = f". The plugin for Axolotl is {__name__}.AlphaLoraPlugin"
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
