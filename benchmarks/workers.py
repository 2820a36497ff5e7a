"""Models in processes of their own, which take a step when they are told to.

On a CPU a step's time depends on what its process did before: the allocator gives back what a
larger model's step has freed, and the next step faults those pages in again.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

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
        Exception: What ``make`` raises.
        ChildProcessError: If the process ends.
    """

    def __init__(self, make: Maker, *arguments: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.contestants"])
        self._connection, theirs = context.Pipe()
        work = (theirs, make, arguments)
        self._process = context.Process(target=_work, args=work, daemon=True)
        self._process.start()
        theirs.close()
        self.facts = self._answer()

    def step(self) -> float:
        """Take a step; seconds."""
        self._connection.send("step")
        return self._answer()

    def close(self) -> None:
        """End the process, and wait until its memory is free."""
        self._connection.close()
        self._process.join()

    def _answer(self) -> Any:
        try:
            done, answer = self._connection.recv()
        except EOFError:
            self._process.join()
            raise ChildProcessError(
                f"A benchmark's process ended, exit status {self._process.exitcode}."
            ) from None
        if not done:
            self.close()
            raise answer
        return answer


def _work(connection: Connection, make: Maker, arguments: tuple[Any, ...]) -> None:
    try:
        facts, step = make(*arguments)
    except Exception as error:
        connection.send((False, error))
        return
    connection.send((True, facts))
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        connection.send((True, step()))
