"""A routed adapter as a plain LoRA, and how far it is from the adapter. Never imports Axolotl."""

from .exported import Exported
from .factors import DEFAULT_METHOD, METHODS, build
from .llama_cpp import GGUF_TYPES
from .output import check_output
from .run import export_adapter

__all__ = [
    "DEFAULT_METHOD",
    "GGUF_TYPES",
    "METHODS",
    "Exported",
    "build",
    "check_output",
    "export_adapter",
]
