"""One stage of the quickstart in a process of its own: output to a log, progress on the console.

It knows nothing of what the stages do: their programs draw tqdm bars and print losses, and the
newest of them drive ours.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..report.terminal import print_as_is

_BAR = re.compile(r"(\d+)/(\d+) \[")
_LOSS = re.compile(r"'loss': '?([0-9.]+)")
_TAIL_LINES = 40
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
_ENVIRONMENT = {
    "AXOLOTL_DO_NOT_TRACK": "1",
    # With several devices and no launcher, transformers would wrap the model in DataParallel.
    "CUDA_VISIBLE_DEVICES": "0",
    # Threads that spin while they wait take the processor from those they wait for.
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class QuickstartError(click.ClickException):
    """A stage of the quickstart cannot go on; the message says what to do."""


@contextmanager
def locked(directory: Path, console: Console) -> Iterator[int]:
    """Keep a directory for one quickstart; another one waits here, and says so.

    Yields the file descriptor that holds the lock. A stage that is handed it keeps the lock for as
    long as it lives, even when the quickstart is killed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print_as_is(f"Waiting for another quickstart to leave {directory} ...", console)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def run_python(
    arguments: Sequence[str],
    log: Path,
    console: Console,
    *,
    name: str,
    lock: int,
    total: int | None = None,
    offline: bool = True,
) -> None:
    """Run a Python program to its end.

    An interrupt, or any other exception here, ends it and everything it started. If this process
    is killed, the program ends with the next line that it prints.

    Args:
        arguments: Python's arguments: `-m`, a module and its arguments.
        log: File that its output is appended to.
        console: Where the progress bar goes.
        name: What it does: "training".
        lock: Descriptor of the lock that it shall hold too.
        total: Only bars of this length count; None takes every bar.
        offline: Keep the Hugging Face libraries from asking the hub for anything.

    Raises:
        QuickstartError: It failed; the message ends with the last lines of its log.
    """
    columns = (
        TextColumn("  {task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]} {task.fields[loss]} {task.fields[note]}"),
        TimeElapsedColumn(),
    )
    child = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_ENVIRONMENT | (_OFFLINE if offline else {}) | os.environ,
        # At an interrupt of its own the host would save what it has as if it were finished.
        start_new_session=True,
        pass_fds=[lock],
    )
    with child, log.open("ab") as output, Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=total, count="", loss="", note="starting")
        try:
            for chunk in iter(child.stdout.read1, b""):  # type: ignore[union-attr]
                output.write(chunk)
                text = chunk.decode(errors="replace")
                for done, of in _BAR.findall(text):
                    if total in (None, int(of)):
                        at, length = int(done), int(of)
                        progress.update(task, completed=at, total=length, count=f"{at}/{length}")
                        progress.update(task, note="")
                for loss in _LOSS.findall(text):
                    progress.update(task, loss=f"loss {float(loss):.3f}")
            if child.wait():
                progress.update(task, note="failed")
            else:
                whole = progress.tasks[task].total or 1
                progress.update(task, completed=whole, total=whole, note="done")
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            raise
    if child.returncode:
        raise QuickstartError(_failure(name, child.returncode, log))


def _failure(name: str, code: int, log: Path) -> str:
    text = log.read_bytes().decode(errors="replace")
    # A tqdm bar redraws itself with carriage returns: of each line only the last state counts.
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")]
    tail = "\n".join([line for line in lines if line.strip()][-_TAIL_LINES:])
    how = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
    hint = " (often: out of memory)" if -code == signal.SIGKILL else ""
    return (
        f"{name} {how}{hint}. The end of {log}:\n\n{tail}\n\n"
        f"Run the same command again to continue. The whole log: {log}"
    )
