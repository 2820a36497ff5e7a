"""A routed adapter as a plain LoRA, and how far it is from the adapter. Never imports Axolotl."""

from .factors import DEFAULT_METHOD, METHODS, build
from .run import Exported, check_output, export_adapter

__all__ = ["DEFAULT_METHOD", "METHODS", "Exported", "build", "check_output", "export_adapter"]
