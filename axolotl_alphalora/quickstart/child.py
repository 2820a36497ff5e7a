"""Run one stage in a process of its own: log to a file, progress on the console.

The stages are programs that draw tqdm bars. Their output goes to the log, and the newest bar in
it drives ours.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from axolotl_alphalora.quickstart.files import QuickstartError

_BAR = re.compile(r"(\d+)/(\d+) \[")
_LOSS = re.compile(r"'loss': '?([0-9.]+)")
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 10
_TAIL_LINES = 40
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Stage:
    """One child process.

    Attributes:
        name: What it does, for messages: "training".
        command: Program and arguments.
        log: File that its output is appended to.
        total: Only bars of this length count; None takes every bar.
        lock: Descriptor of a lock that the child shall hold too.
    """

    name: str
    command: Sequence[str]
    log: Path
    total: int | None = None
    lock: int | None = None


def run_stage(stage: Stage, console: Console, *, offline: bool) -> float:
    """Run a stage to its end.

    An interrupt, or any other exception here, ends the child and everything it started.

    Args:
        stage: What to run.
        console: Where the progress bar goes.
        offline: Keep the Hugging Face libraries from asking the hub for anything.

    Returns:
        The seconds it took.

    Raises:
        QuickstartError: The child failed; the message ends with the last lines of its log.
    """
    start = time.monotonic()
    with stage.log.open("ab") as output:
        offset = output.tell()
        child = subprocess.Popen(
            list(stage.command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(offline),
            start_new_session=True,
            pass_fds=() if stage.lock is None else (stage.lock,),
            preexec_fn=_die_with_parent(),
        )
    try:
        _follow(child, stage, offset, console)
    except BaseException:
        _stop(child)
        raise
    if child.returncode:
        raise QuickstartError(_failure(stage, child.returncode))
    return time.monotonic() - start


def _environment(offline: bool) -> dict[str, str]:
    defaults = {
        "AXOLOTL_DO_NOT_TRACK": "1",
        # With several devices and no launcher, transformers would wrap the model in DataParallel.
        "CUDA_VISIBLE_DEVICES": "0",
        # Threads that spin while they wait take the processor from those they wait for: with one
        # busy neighbour on two cores this makes PyTorch twice to four times as fast.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if offline:
        defaults |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return defaults | os.environ


def _die_with_parent() -> Callable[[], None] | None:
    """Return what a Linux child runs so that SIGKILL of this process ends it too."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def request() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return request


def _follow(child: subprocess.Popen[bytes], stage: Stage, offset: int, console: Console) -> None:
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress, stage.log.open("rb") as log:
        log.seek(offset)
        task = progress.add_task(
            escape(stage.name), total=stage.total, count="", loss="", note="starting"
        )
        running = True
        while running:
            running = child.poll() is None
            text = log.read().decode(errors="replace")
            bars = [(int(n), int(of)) for n, of in _BAR.findall(text)]
            bars = [bar for bar in bars if stage.total in (None, bar[1])]
            if bars:
                done, total = bars[-1]
                count = f"{done}/{total}"
                progress.update(task, completed=done, total=total, count=count, note="")
            if losses := _LOSS.findall(text):
                progress.update(task, loss=f"loss {float(losses[-1]):.3f}")
            if running:
                time.sleep(_POLL_SECONDS)
        if child.returncode:
            progress.update(task, note="failed")
        else:
            length = progress.tasks[task].total or 1
            progress.update(task, completed=length, total=length, note="done")


def _stop(child: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=_GRACE_SECONDS)
            return


def _failure(stage: Stage, code: int) -> str:
    text = stage.log.read_bytes().decode(errors="replace")
    # A tqdm bar redraws itself with carriage returns: of each line only the last state counts.
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")]
    tail = "\n".join(line for line in lines if line.strip()).split("\n")[-_TAIL_LINES:]
    how = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
    hint = " (often: out of memory)" if -code == signal.SIGKILL else ""
    return (
        f"{stage.name} {how}{hint}. The end of {stage.log}:\n\n"
        + "\n".join(tail)
        + f"\n\nRun the same command again to continue. The whole log: {stage.log}"
    )
