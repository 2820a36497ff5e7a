"""Standard output that holds what was asked for and nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress

import click

__all__ = ["only_output"]


@contextmanager
def only_output(wanted: bool = True) -> Iterator[Callable[[str], None]]:
    """Send whatever else is printed to stderr, and only what is handed over to stdout.

    Libraries, the host and processes that are started print as well. The host, when the command
    runs as its verb, has printed its banner before; that still waits in stdout's buffer where
    stdout is a pipe or a file, and goes to stderr too. If Python runs unbuffered it is out
    already, which a line on stderr then says.

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
    _say_if_unbuffered()
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


def _say_if_unbuffered() -> None:
    art = sys.modules.get("axolotl.cli.art")
    printed = getattr(art, "HAS_PRINTED_LOGO", False)
    if printed and getattr(sys.stdout, "write_through", False):
        with suppress(OSError):
            click.echo(
                "Axolotl's banner stands on stdout before the output, since Python runs unbuffered "
                "(PYTHONUNBUFFERED, -u). Start the command as `alphalora` for a clean stdout.",
                err=True,
            )
