"""Models in processes of their own, which take a step when they are told to.

On a CPU a step's time depends on what its process did before: the allocator gives back what a
larger model's step has freed, and the next step faults those pages in again. Every process holds
all that it needs, the base model too.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from .contestants import Absent

__all__ = ["Worker"]

Maker = Callable[..., tuple[Any, Callable[[], float]]]
"""Makes what is to be stepped: what there is to say of it, and the step, which returns seconds."""


class Worker:
    """A process that makes something and takes its steps.

    Its processes are forked from one that has done nothing but import PEFT and the contestants.

    Args:
        make: A function of a module; see `Maker`.
        *arguments: Its arguments, pickled.

    Attributes:
        facts: What ``make`` had to say.

    Raises:
        Absent: If ``make`` does.
        ChildProcessError: If the process ends, by another error of ``make`` or of a step, which it
            prints, or because it was killed.
    """

    def __init__(self, make: Maker, *arguments: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.contestants"])
        self._connection, theirs = context.Pipe()
        work = (theirs, make, arguments)
        self._process = context.Process(target=_work, args=work, daemon=True)
        self._process.start()
        theirs.close()
        self.facts = self._answer(None)

    def step(self) -> float:
        """Take a step; seconds."""
        return self._answer("step")

    def close(self) -> None:
        """End the process, and wait until its memory is free."""
        self._connection.close()
        self._process.join()

    def _answer(self, request: str | None) -> Any:
        try:
            if request is not None:
                self._connection.send(request)
            answer = self._connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.close()
            raise ChildProcessError(
                f"A benchmark's process ended, exit status {self._process.exitcode}; -9 is often "
                "that of a machine without memory left."
            ) from None
        if isinstance(answer, Absent):
            self.close()
            raise answer
        return answer


def _work(connection: Connection, make: Maker, arguments: tuple[Any, ...]) -> None:
    try:
        facts, step = make(*arguments)
    except Absent as reason:
        connection.send(reason)
        return
    connection.send(facts)
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        connection.send(step())
