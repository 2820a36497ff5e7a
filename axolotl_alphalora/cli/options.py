"""Options that `alphalora plan` and `alphalora analyze` share, checked before any measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..planning.source import split_outside
from ..report.plots import check_plot
from .paths import FilePath

__all__ = ["Wishes", "errors_in_words", "shared_options"]

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
class Wishes:
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
    ) -> Wishes:
        """Check that options go together.

        Args:
            compare: Specifications of --compare, each perhaps several, separated by commas.
            per_module: Whether --per-module is given.
            confidence: Whether --confidence is given.
            samples: What --samples says.
            plot: What --plot says.
            spectra: Whether --spectra is given.
            plots_compared: Whether a comparison can be drawn.

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
    except (ValueError, TypeError, OSError, ImportError) as error:
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
        lines.append(f"`{where}`: {item['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)
