"""`alphalora lm-eval`: Axolotl's `lm-eval`, with a harness that knows the adapter.

Axolotl starts `lm_eval` by its name and names the output directory as the model. It holds a
`config.json` beside the adapter, so transformers would look for a whole model there: run as a
program, this file names the base and the adapter apart and starts the harness.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from ..files import ADAPTER_CONFIG, read_adapter_config
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
        script = Path(folder) / "lm_eval"
        command = f'{shlex.quote(sys.executable)} -m {__name__} "$@" {shlex.join(options)}'
        script.write_text(f"#!/bin/sh\nexec {command}\n")
        script.chmod(0o755)
        os.environ["PATH"] = f"{folder}{os.pathsep}{path}"
        try:
            lm_eval_command.callback(config=str(config), cloud=None)
        except subprocess.CalledProcessError as error:
            raise click.ClickException(
                f"lm_eval failed ({error.returncode}); see above."
            ) from error
        finally:
            os.environ["PATH"] = path


def with_base_model(arguments: Sequence[str]) -> list[str]:
    """Replace `pretrained=ADAPTER` in lm_eval's arguments by the adapter's base and `peft=`.

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

    from .. import adapter  # noqa: F401  the method, which the process must know

    sys.argv[1:] = with_base_model(sys.argv[1:])
    cli_evaluate()
