"""Standard output that holds what was asked for and nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout

import click

__all__ = ["only_output"]


@contextmanager
def only_output(wanted: bool = True) -> Iterator[Callable[[str], None]]:
    """Send whatever else is printed to stderr, and only what is handed over to stdout.

    Libraries, the host and processes that are started print as well. Axolotl prints its banner to
    stdout before it hands over to any verb: where stdout is no terminal, a line on stderr then
    says how to start the command without it.

    Args:
        wanted: Whether stdout is for a program; otherwise text is printed at once.

    Yields:
        Takes the text. It is written when the block ends, and not if that raises.
    """
    if not wanted:
        yield click.echo
        return
    texts: list[str] = []
    with _stdout_to_stderr():
        yield texts.append
    for text in texts:
        click.echo(text)


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    _tell_of_banner()
    try:
        ours, theirs = sys.stdout.fileno(), sys.stderr.fileno()
    except (OSError, ValueError):  # replaced by an object without a file
        with redirect_stdout(sys.stderr):
            yield
        return
    kept = os.dup(ours)
    os.dup2(theirs, ours)
    try:
        sys.stdout.flush()
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, ours)
        os.close(kept)


def _tell_of_banner() -> None:
    art = sys.modules.get("axolotl.cli.art")
    if getattr(art, "HAS_PRINTED_LOGO", False) and not sys.stdout.isatty():
        click.echo(
            "Axolotl has printed its banner to stdout, before what follows there. Start the "
            "command as `alphalora` instead of `axolotl alphalora` for a stdout without it.",
            err=True,
        )
