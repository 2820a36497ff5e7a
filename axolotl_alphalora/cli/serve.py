"""`alphalora serve`: answer requests with a routed adapter, by vLLM where it is installed."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import click

from ..vllm.saved import ANY_BASE_KEY, FOLDER_KEY, LOAD_FORMAT, SavedAdapter, read_adapter
from .options import FilePath, ModelName, errors_in_words

_HERE = Path(__file__).resolve()
_SMALL_SERVERS = (
    _HERE.parents[2] / "example_configs" / "serve.py",  # of a checkout
    _HERE.parents[1] / "example_configs" / "serve.py",  # of a wheel
)


@click.command()
@click.argument("adapter", metavar="ADAPTER_DIR", type=FilePath(exists=True, file_okay=False))
@click.argument("options", metavar="[-- VLLM_OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--base-model",
    type=ModelName(),
    help="For vLLM: the base model's directory or hub id, if it is not where the adapter was "
    "trained on it.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8000,
    show_default=True,
    help="Where to listen, for this machine alone; `-- --host 0.0.0.0` has vLLM listen to all.",
)
@click.option(
    "--print", "only_print", is_flag=True, help="Print vLLM's command, and start nothing."
)
def serve(
    adapter: Path, options: Sequence[str], base_model: str | None, port: int, only_print: bool
) -> None:
    """Serve a routed adapter over HTTP, in the style of OpenAI's API.

    vLLM does it where it is installed: many requests at a time, with a router for every token.
    Options after `--` are vLLM's own. Elsewhere the small server of `example_configs/` starts,
    which answers one request at a time with transformers, and needs fastapi and uvicorn.
    """
    if only_print or find_spec("vllm") is not None:
        with errors_in_words():
            command = vllm_command(read_adapter(adapter.resolve()), base_model, port, options)
        if only_print:
            click.echo(shlex.join(["python", *command]))
            return
    else:
        if options or base_model:
            raise click.UsageError(
                "vLLM is not installed here, and its options and --base-model are for it alone."
            )
        command = small_server(adapter, port)
    click.echo(shlex.join(["python", *command]), err=True)
    os.execv(sys.executable, [sys.executable, *command])


def vllm_command(
    adapter: SavedAdapter, base_model: str | None, port: int, options: Sequence[str] = ()
) -> list[str]:
    """What Python is to run so that vLLM serves an adapter.

    Args:
        adapter: The adapter.
        base_model: Its base, if not the one that it names.
        port: Where to listen.
        options: Further ones of vLLM's.

    Raises:
        ValueError: If no base is named.
    """
    base = base_model or adapter.base_model
    if not base:
        raise ValueError(f"{adapter.folder} does not say what its base model is: add --base-model.")
    extra: dict[str, object] = {FOLDER_KEY: str(adapter.folder)}
    if base != adapter.base_model:
        extra[ANY_BASE_KEY] = True
    command = ["-m", "vllm.entrypoints.openai.api_server", "--model", base]
    if adapter.revision and base == adapter.base_model:
        command += ["--revision", adapter.revision]
    if (adapter.folder / "tokenizer_config.json").is_file():
        command += ["--tokenizer", str(adapter.folder)]
    command += ["--load-format", LOAD_FORMAT, "--additional-config", json.dumps(extra)]
    command += ["--served-model-name", adapter.folder.name]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    return [*command, *options]


def small_server(adapter: Path, port: int) -> list[str]:
    """What Python is to run for the server in one file.

    Raises:
        click.ClickException: If it lacks a package; says how to install it.
    """
    lacking = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if lacking:
        raise click.ClickException(
            f"Neither vLLM nor what the small server needs ({', '.join(lacking)}) is installed: "
            "`pip install fastapi uvicorn`, or print vLLM's command with --print."
        )
    file = next(path for path in _SMALL_SERVERS if path.is_file())
    click.echo("vLLM is not installed here: this server answers one request at a time.", err=True)
    return [str(file), str(adapter), "--port", str(port)]
