"""Plain lines on a rich console."""

from __future__ import annotations

from rich.console import Console


def say(console: Console, text: str, *, style: str | None = None) -> None:
    """Print a line as it is: paths are neither wrapped, coloured nor read as markup.

    Args:
        console: Where to print.
        text: The line.
        style: A rich style for all of it.
    """
    console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)
