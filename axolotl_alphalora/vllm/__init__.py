"""The routed adapter in vLLM, by an entry point in `vllm.general_plugins`.

    python -m vllm.entrypoints.openai.api_server --model BASE --load-format alphalora \
        --additional-config '{"alphalora": "ADAPTER_DIR"}'

Knows nothing of PEFT or Axolotl.
"""

from __future__ import annotations

from functools import cache

from ..registration import when_imported

_LOADERS = "vllm.model_executor.model_loader"


def register() -> None:
    """Offer the load format; vLLM calls this in each of its processes, whatever it serves.

    Nothing of vLLM is imported for it that this process does not import by itself.
    """
    when_imported(_LOADERS, _add_loader)


@cache
def _add_loader() -> None:
    from vllm.model_executor.model_loader import register_model_loader

    from .loader import AlphaLoraLoader
    from .saved import LOAD_FORMAT

    register_model_loader(LOAD_FORMAT)(AlphaLoraLoader)
