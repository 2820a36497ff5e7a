"""The quickstart: a real model, trained, reloaded and compared, in one command."""

from axolotl_alphalora.quickstart.run import run_quickstart

__all__ = ["run_quickstart"]
