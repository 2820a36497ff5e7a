"""``alphalora lm-eval``: Axolotl's `lm-eval`, with a harness that knows the adapter."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from ..planning.keys import read_yaml
from .options import errors_in_words
from .paths import FilePath


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
            "pip install 'axolotl-alphalora[axolotl]' lm_eval"
        ) from error
    with errors_in_words():
        keys = read_yaml(config)
    if not keys.get("lm_eval_tasks"):
        raise click.ClickException(f"{config} names no `lm_eval_tasks`, for example [arc_easy].")
    path = os.environ.get("PATH", "")
    with TemporaryDirectory() as folder:
        # The host starts `lm_eval` by its name.
        script = Path(folder) / "lm_eval"
        module = "axolotl_alphalora.cli.lm_eval_process"
        command = f'{shlex.quote(sys.executable)} -m {module} "$@" {shlex.join(options)}'
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
