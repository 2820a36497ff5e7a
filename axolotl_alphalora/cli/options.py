"""What the commands share: paths, options, errors in words, and a stdout that holds one thing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..files import check_writable, expanded
from ..planning.source import split_outside
from ..plugin.host import has_printed_banner
from ..report.plots import check_plot


class FilePath(click.Path):
    """A path, in which `~` is the home directory, as in a shell that did not read it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"path_type": Path, **options})

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Expand `~`, then check as click does."""
        return super().convert(expanded(value), param, ctx)


class ModelName(click.ParamType):
    """A directory, a file or a hub id, as text; `~` is the home directory."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Expand `~`."""
        return expanded(value)


def check_files(written: Mapping[str, Path | None], *read: str | Path | None) -> None:
    """Check that files can be written, before any work is done for them.

    Args:
        written: Option to its file; None where it is not given.
        read: What the command reads.

    Raises:
        click.UsageError: If one cannot be written, is what is read, or is that of two options.
    """
    taken = {os.path.realpath(path): "what is read" for path in read if path is not None}
    for option, path in written.items():
        if path is None:
            continue
        place = os.path.realpath(path)
        if place in taken:
            raise click.UsageError(f"{option} {path} is {taken[place]}: name another file.")
        taken[place] = f"the file of {option}"
        try:
            check_writable(path)
        except OSError as error:
            raise click.UsageError(
                f"{option} {path} cannot be written ({error.strerror}): name another place."
            ) from error


_SAMPLES = 100

_OPTIONS = [
    click.option("--per-module", is_flag=True, help="Also print every matrix."),
    click.option(
        "--confidence",
        is_flag=True,
        help="Resample the spectra: where 95 % of each block's alphas lie.",
    ),
    click.option(
        "--samples",
        type=click.IntRange(min=10),
        help=f"Resamples of --confidence.  [default: {_SAMPLES}]",
    ),
    click.option(
        "--plot",
        type=FilePath(dir_okay=False),
        help="Draw it over depth into a .png, .svg, .pdf or .html file.",
    ),
    click.option(
        "--spectra",
        is_flag=True,
        help="With --plot: also the spectra and fits of the least and the best trained block.",
    ),
]


@dataclass(frozen=True)
class Display:
    """What is to be shown besides the table of blocks.

    Attributes:
        per_module: Whether to print every matrix.
        samples: Resamples for the intervals, 0 for none.
        plot: File to draw to, None for none.
        spectra: Whether to draw spectra.
        compare: Specifications of what to lay side by side.
    """

    per_module: bool
    samples: int
    plot: Path | None
    spectra: bool
    compare: list[str]

    @classmethod
    def read(
        cls,
        compare: Sequence[str],
        per_module: bool,
        confidence: bool,
        samples: int | None,
        plot: Path | None,
        spectra: bool,
        plots_compared: bool = False,
    ) -> Display:
        """Check that options go together; `plots_compared` is whether a comparison can be drawn.

        Raises:
            click.UsageError: If they do not, or the plot's suffix is unknown.
            click.ClickException: If matplotlib is needed and not installed.
        """
        if samples is not None and not confidence:
            raise click.UsageError("--samples says how often --confidence resamples: add it.")
        if spectra and plot is None:
            raise click.UsageError("--spectra adds to a plot: name its file with --plot.")
        specs = [spec for value in compare for spec in split_outside(value, ",")]
        for option, given in (
            ("--per-module", per_module),
            ("--confidence", confidence),
            ("--spectra", spectra),
            ("--plot", plot and not plots_compared),
        ):
            if specs and given:
                raise click.UsageError(f"--compare prints a table of its own: leave out {option}.")
        if plot is not None:
            try:
                check_plot(plot)
            except ValueError as error:
                raise click.UsageError(str(error)) from error
            except ImportError as error:
                raise click.ClickException(str(error)) from error
        count = (samples or _SAMPLES) if confidence else 0
        return cls(per_module, count, plot, spectra, list(dict.fromkeys(specs)))


def shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the shared options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Turn errors that say what is wrong into one message without a traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, NotImplementedError) as error:
        raise click.ClickException(_message(error)) from error


def _message(error: Exception) -> str:
    """A pydantic error without its header and links; any other as it is."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error)
    # Only the block is validated by itself; the host's schema holds all keys.
    prefix = ["alphalora"] if error.title == "AlphaLoraConfigBlock" else []
    lines = []
    for item in error.errors():
        where = ".".join([*prefix, *(str(part) for part in item["loc"])])
        said = item["msg"].removeprefix("Value error, ")
        if item["type"] != "value_error":
            said = f"{said}, got {item['input']!r}"
        lines.append(f"`{where}`: {said}" if where else said)
    return "\n".join(lines)


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
    if has_printed_banner() and not sys.stdout.isatty():
        click.echo(
            "Axolotl has printed its banner to stdout, before what follows there. Start the "
            "command as `alphalora` instead of `axolotl alphalora` for a stdout without it.",
            err=True,
        )
