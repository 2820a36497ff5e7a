"""The LM Evaluation Harness in a process that knows the ALPHALORA method.

Axolotl names the output directory as the model. It holds a `config.json` beside the adapter, so
transformers would look for a whole model there: the base and the adapter are named apart instead.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import axolotl_alphalora.adapter  # noqa: F401
from axolotl_alphalora.files import ADAPTER_CONFIG, read_adapter_config


def with_base_model(arguments: Sequence[str]) -> list[str]:
    """Replace ``pretrained=ADAPTER`` in lm_eval's arguments by the adapter's base and ``peft=``.

    Args:
        arguments: The command line after the program's name.
    """
    changed = list(arguments)
    at = changed.index("--model_args") + 1
    settings = dict(part.split("=", 1) for part in changed[at].split(","))
    adapter = settings["pretrained"]
    if (Path(adapter) / ADAPTER_CONFIG).is_file():
        base = read_adapter_config(Path(adapter))["base_model_name_or_path"]
        settings |= {"pretrained": base, "peft": adapter, "tokenizer": adapter}
    changed[at] = ",".join(f"{key}={value}" for key, value in settings.items())
    return changed


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    sys.argv[1:] = with_base_model(sys.argv[1:])
    cli_evaluate()
