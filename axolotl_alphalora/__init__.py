"""AlphaLoRA for Axolotl: mixtures of LoRA experts whose number differs from block to block.

The names below are loaded on first use: the command line must start without PEFT or Axolotl.
PEFT knows the method (`PeftModel.from_pretrained` opens its adapters) once both are imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registration import register

if TYPE_CHECKING:
    from .adapter import AlphaLoraConfig, AlphaLoraModel
    from .analysis import analyze
    from .plugin.plugin import AlphaLoraPlugin
    from .trainer import AlphaLoraCallback

__version__ = "0.1.0"

__all__ = ["AlphaLoraCallback", "AlphaLoraConfig", "AlphaLoraModel", "AlphaLoraPlugin", "analyze"]

_HOMES = {
    "AlphaLoraCallback": ".trainer",
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


register()
