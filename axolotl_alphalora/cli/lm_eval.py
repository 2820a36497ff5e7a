"""`alphalora lm-eval`: Axolotl's `lm-eval`, with a harness that knows the adapter.

Axolotl starts `lm_eval` by its name and names the output directory as the model. It holds a
`config.json` beside the adapter, so transformers would look for a whole model there: run as a
program, this file names the base and the adapter apart and starts the harness.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import yaml

from ..files import ADAPTER_CONFIG, expanded, read_adapter_config
from ..hosts.constants import OUTPUT_DIR
from ..planning.keys import read_yaml
from ..plugin.host import REQUIREMENT
from .options import FilePath, errors_in_words


@click.command("lm-eval", context_settings={"ignore_unknown_options": True})
@click.argument("config", type=FilePath(exists=True, dir_okay=False))
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def lm_eval(config: Path, options: tuple[str, ...]) -> None:
    """Evaluate a trained adapter with the LM Evaluation Harness.

    Does what `axolotl lm-eval CONFIG` does, by the same keys of the YAML (`lm_eval_tasks`,
    `lm_eval_batch_size`, `lm_eval_model`, ...), on the adapter in `output_dir`. Axolotl starts
    `lm_eval` in a process that knows PEFT's own methods only; here that process knows ours too.
    OPTIONS are handed to `lm_eval`, for example `--limit 100` or `--include_path DIR`.
    """
    try:
        from lm_eval import __version__ as _  # noqa: F401

        from ..plugin.host import lm_eval_command
    except ImportError as error:
        raise click.ClickException(
            f"{error}. `alphalora lm-eval` needs Axolotl and the harness: "
            f"pip install '{REQUIREMENT}' lm_eval"
        ) from error
    with errors_in_words():
        keys = read_yaml(config)
    if not keys.get("lm_eval_tasks"):
        raise click.ClickException(f"{config} names no `lm_eval_tasks`, for example [arc_easy].")
    path = os.environ.get("PATH", "")
    with TemporaryDirectory() as folder:
        # The host starts `lm_eval` by its name.
        script, given = Path(folder) / "lm_eval", Path(folder) / config.name
        settings = shlex.quote(json.dumps(model_settings(keys)))
        command = f'{shlex.quote(sys.executable)} -m {__name__} {settings} "$@"'
        script.write_text(f"#!/bin/sh\nexec {command} {shlex.join(options)}\n")
        script.chmod(0o755)
        given.write_text(yaml.safe_dump(with_defaults(keys)))
        os.environ["PATH"] = f"{folder}{os.pathsep}{path}"
        try:
            lm_eval_command.callback(config=str(given), cloud=None)
        except subprocess.CalledProcessError as error:
            raise click.ClickException(
                f"lm_eval failed ({error.returncode}); see above."
            ) from error
        finally:
            os.environ["PATH"] = path


def with_defaults(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return a YAML's keys with what Axolotl's `lm-eval`, which reads them raw, needs of them.

    It would look for the adapter on the hub where there is a `hub_model_id`.

    Args:
        keys: The YAML.
    """
    output = expanded(str(keys.get("output_dir") or OUTPUT_DIR))
    return {
        **keys,
        "output_dir": output,
        "lm_eval_model": keys.get("lm_eval_model") or output,
        "lm_eval_batch_size": keys.get("lm_eval_batch_size") or _BATCH_SIZE,
    }


_BATCH_SIZE = 8
"""Axolotl's own default, which its `lm-eval` does not fill in."""


def model_settings(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a YAML's base model is to be loaded, as lm_eval's `--model_args`.

    Args:
        keys: The YAML.
    """
    half = {
        "bfloat16": ("bf16", "bfloat16"),
        "float16": ("fp16", "float16"),
    }
    wanted = (dtype for dtype, names in half.items() if any(keys.get(name) for name in names))
    named = any(keys.get(name) is not None for names in half.values() for name in names)
    found: dict[str, Any] = {"dtype": next(wanted, "float32" if named else "auto")}
    if keys.get("trust_remote_code"):
        found["trust_remote_code"] = True
    if keys.get("revision_of_model"):
        found["revision"] = keys["revision_of_model"]
    return found


def with_base_model(arguments: Sequence[str], base: Mapping[str, Any]) -> list[str]:
    """Replace `pretrained=ADAPTER` in lm_eval's arguments by the adapter's base and `peft=`.

    Args:
        arguments: The command line after the program's name.
        base: How the base is to be loaded, see `model_settings`; the adapter's own revision of it
            counts where there is none.
    """
    changed = list(arguments)
    at = changed.index("--model_args") + 1
    settings = dict(part.split("=", 1) for part in changed[at].split(","))
    adapter = settings["pretrained"]
    if (Path(adapter) / ADAPTER_CONFIG).is_file():
        saved = read_adapter_config(Path(adapter))
        settings |= {
            "pretrained": saved["base_model_name_or_path"],
            "peft": adapter,
            "tokenizer": adapter,
        }
        if saved.get("revision"):
            settings["revision"] = saved["revision"]
    else:  # the YAML's revision is that of another model
        base = {key: value for key, value in base.items() if key != "revision"}
    settings |= base
    changed[at] = ",".join(f"{key}={value}" for key, value in settings.items())
    return changed


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    from .. import adapter  # noqa: F401  the method, which the process must know

    sys.argv[1:] = with_base_model(sys.argv[2:], json.loads(sys.argv[1]))
    cli_evaluate()
