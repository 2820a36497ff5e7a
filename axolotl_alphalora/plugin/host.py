"""The names of Axolotl that we use, where it has them now, and the releases that we know.

Axolotl has no stable interface but its plugins', so every name counts as one that may move. A name
is imported when it is asked for (`from .host import get_logger`), inside of functions: some take
seconds. `tests/test_contracts.py` checks each against the installed release.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from typing import Any

import click
from packaging.version import Version

OLDEST = "0.20"
NEWEST = "0.21"
"""The newest release that the tests ran with, with any patch number."""

REQUIREMENT = f"axolotl>={OLDEST},<0.22"
"""What to install, as the extra `axolotl` has it."""

_HOMES: Mapping[str, str] = {
    # What a plugin is.
    "AdapterCapabilities": "axolotl.integrations.base",
    "BasePlugin": "axolotl.integrations.base",
    "PluginManager": "axolotl.integrations.base",  # the other plugins, and their adapters
    "get_logger": "axolotl.utils.logging",
    # Its configuration, as it reads and changes it.
    "DictDefault": "axolotl.utils.dict",
    "load_cfg": "axolotl.cli.config",  # of a YAML that no run has read
    "determine_last_checkpoint": "axolotl.utils.train",  # what `auto_resume_from_checkpoints` means
    # Loading the base model.
    "load_model_and_tokenizer": "axolotl.cli.utils.load",
    "load_tokenizer": "axolotl.loaders",
    "model_loading": "axolotl.loaders.model:",  # where its patches replace PEFT's preparation
    "bnb_4bit_skip_modules": "axolotl.utils.nf4",  # what `qlora` leaves unquantised; not in 0.20
    "fsdp2_qlora": "axolotl.monkeypatch.fsdp2_qlora:",  # whether its patches of FSDP2 took
    "frozen_parts": "axolotl.utils.freeze:_MM_MODULE_PREFIXES",  # by `freeze_mm_modules`
    "peft_task_type": "axolotl.loaders.adapter:_get_peft_task_type",
    # Processes.
    "get_device_type": "axolotl.utils.distributed",
    "init_distributed_state": "axolotl.utils.distributed",
    "is_distributed": "axolotl.utils.distributed",
    # The training data, row by row.
    "FileLockLoader": "axolotl.utils.data.lock",
    "load_and_prepare_datasets": "axolotl.utils.data.sft:_load_and_prepare_datasets",
    "parse_dataset_type": "axolotl.utils.data.sft:_parse_dataset_type",
    "datasets_with_name_generator": "axolotl.utils.data.shared",
    "load_dataset_with_config": "axolotl.utils.data.shared",
    "handle_long_seq_in_dataset": "axolotl.utils.data.utils",
    "get_dataset_wrapper": "axolotl.utils.data.wrappers",
    # Its command that we stand in for.
    "lm_eval_command": "axolotl.integrations.lm_eval.cli:lm_eval",
}
"""Our name to its module there; after a colon its name there, if another, or none: the module."""

PREPARED_IN = "last_run_prepared"
"""Copied: where the host keeps prepared data if `dataset_prepared_path` does not say."""

FP32_STORAGE_MODELS = frozenset({"jamba", "qwen2_moe", "nemotron_h"})
"""Copied: models whose packed weights are stored as fp32 unless a sharding engine runs."""

INT8_SKIPPED: Mapping[str, list[str]] = {"jamba": ["mamba"], "falcon_h1": ["out_proj"]}
"""Copied: what `load_in_8bit` leaves unquantised."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, colon, theirs = _HOMES[name].partition(":")
    found = import_module(module)
    return found if colon and not theirs else getattr(found, theirs or name)


def running_verb() -> str | None:
    """The host's command that this process runs, by its module's name, or None.

    The host passes its verbs to no plugin. `axolotl VERB` is the context of its command line; in
    the processes that a launcher starts with `python -m axolotl.cli.VERB`, the main module.
    """
    context = click.get_current_context(silent=True)
    commands = getattr(sys.modules.get("axolotl.cli.main"), "cli", None)
    while context is not None:
        if context.parent is not None and context.parent.command is commands:
            return str(context.info_name).replace("-", "_")
        context = context.parent
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    parent, _, name = (spec.name if spec else "").rpartition(".")
    return name if parent == "axolotl.cli" else None


def has_printed_banner() -> bool:
    """Whether the host's command line has printed its banner to stdout in this process."""
    return bool(getattr(sys.modules.get("axolotl.cli.art"), "HAS_PRINTED_LOGO", False))


def check_host() -> None:
    """Refuse an Axolotl whose PEFT can neither save nor balance a routed adapter.

    Warns where it is newer than what the tests ran with.

    Raises:
        RuntimeError: If it is too old. Axolotl 0.19 and 0.20 log an ImportError and go on.
    """
    found = version("axolotl")
    if Version(found) < Version(OLDEST):
        raise RuntimeError(
            f"axolotl-alphalora needs Axolotl {OLDEST} or newer, and {found} is installed: "
            f"pip install '{REQUIREMENT}'."
        )
    if Version(found).release[:2] > Version(NEWEST).release:
        __getattr__("get_logger")(__name__).warning(
            "AlphaLoRA: axolotl-alphalora was tested with Axolotl up to %s.x, and %s is installed. "
            "If something goes wrong, report it among the issues of axolotl-alphalora with both "
            "versions, and install '%s' meanwhile.",
            NEWEST,
            found,
            REQUIREMENT,
        )
