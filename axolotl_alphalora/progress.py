"""Progress bars for work on many matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Doing", "working"]

Step = Callable[[str], None]
Start = Callable[[Sequence[str]], Step]
Doing = Callable[[str], Start]


@contextmanager
def working(console: Console | None) -> Iterator[Doing]:
    """Show progress bars, gone from the screen when the work is done or fails.

    Args:
        console: Where to; None shows nothing, as does a console that is no terminal.

    Yields:
        A function that takes what is being done. What it returns takes the names of the matrices
        and returns a function to be called after each.
    """
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=console is None or not console.is_terminal,
    )

    def doing(what: str) -> Start:
        def start(names: Sequence[str]) -> Step:
            task = bars.add_task(what, total=len(names))
            return lambda name: bars.advance(task)

        return start

    with bars:
        yield doing
