"""Progress of work on many matrices or rows: bars on a terminal, lines now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

Step = Callable[[str], None]
Progress = Callable[[Sequence[str]], Step]
"""Takes the names of what is worked on; what it returns is called after each."""
Stages = Callable[[str], Progress]
"""Takes what is being done."""
Clock = Callable[[], float]

_BETWEEN = 15.0
_SHORT = 2.0


@contextmanager
def working(console: Console | None, clock: Clock = time.monotonic) -> Iterator[Stages]:
    """Show how far the work is.

    On a terminal there are bars, gone from the screen when the work is done or fails. Elsewhere,
    such as in a job's log, stderr gets a line after the first 2 seconds, then every 15 seconds at
    most, and one at the end of what took 2 seconds or more.

    Args:
        console: Where bars are shown if it is a terminal, else on stderr; None shows nothing.
        clock: Gives the time in seconds.

    Yields:
        A function that takes what is being done, see `Stages`.
    """
    if console is not None and not console.is_terminal:
        console = Console(stderr=True)
    if console is not None and not console.is_terminal:
        yield _in_lines(console, clock)
        return
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=console is None,
    )

    def stage(what: str) -> Progress:
        def start(names: Sequence[str]) -> Step:
            task = bars.add_task(what, total=len(names))
            return lambda name: bars.advance(task)

        return start

    with bars:
        yield stage


def _in_lines(console: Console, clock: Clock) -> Stages:
    def stage(what: str) -> Progress:
        def start(names: Sequence[str]) -> Step:
            total, done = len(names), 0
            began = said = clock()

            def step(name: str) -> None:
                nonlocal done, said
                done += 1
                now = clock()
                taken = now - began
                due = now - said >= (_SHORT if said == began else _BETWEEN)
                if done < total and due:
                    left = taken / done * (total - done)
                    line = f"{what}: {done} of {total}, about {_duration(left)} left"
                elif done == total and taken >= _SHORT:
                    line = f"{what}: {done} of {total}, done in {_duration(taken)}"
                else:
                    return
                said = now
                console.print(line, highlight=False, markup=False, soft_wrap=True)

            return step

        return start

    return stage


def _duration(seconds: float) -> str:
    """Return a time as `42 s`, `3:07 min` or `2:05:00 h`."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
