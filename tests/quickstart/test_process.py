"""Stages in processes of their own: progress, failure, interruption, and the lock they hold."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from axolotl_alphalora.quickstart.process import QuickstartError, locked, run_python

from .conftest import printed

REPORTS_PID = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); "
SLEEPS = REPORTS_PID + "time.sleep(60)"
PRINTS = REPORTS_PID + "[(print('step', flush=True), time.sleep(0.1)) for _ in range(600)]"


def run(folder, console, program, *arguments, **options):
    log = folder / "training.log"
    with locked(folder, console) as lock:
        run_python(["-c", program, *arguments], log, console, name="training", lock=lock, **options)


def wait_for_pid(path):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.02)
    raise TimeoutError(path)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid):
    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(pid)


def test_bars_and_losses_in_the_log_drive_the_progress(tmp_path, console):
    program = r"""print("90/99 [x]\r 7/8 [00:01", "{'loss': '0.25', 'grad_norm': '1'}", end="")"""
    run(tmp_path, console, program, total=8)
    assert "loss 0.250" in printed(console)
    assert "7/8" in printed(console)


def test_a_failure_shows_the_end_of_the_log(tmp_path, console):
    program = r"""print("first\n" * 60 + "10% bar\r20% bar\nreason [bold]"); raise SystemExit(3)"""
    with pytest.raises(QuickstartError) as error:
        run(tmp_path, console, program)
    message = error.value.message
    assert "training failed with exit code 3" in message
    assert "20% bar\nreason [bold]" in message
    assert "10% bar" not in message
    assert message.count("first") == 38
    assert str(tmp_path / "training.log") in message


def test_a_killed_child_is_reported(tmp_path, console):
    program = "import os; os.kill(os.getpid(), 9)"
    with pytest.raises(QuickstartError, match="ended by signal 9 .*out of memory"):
        run(tmp_path, console, program)


def test_the_hub_is_off_limits_only_when_asked(tmp_path, console, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    program = "import os; print(os.environ.get('HF_HUB_OFFLINE'))"
    for offline in (True, False):
        run(tmp_path, console, program, offline=offline)
    assert (tmp_path / "training.log").read_text() == "1\nNone\n"


def test_an_interrupt_ends_the_child(tmp_path, console):
    pid_file = tmp_path / "pid"

    def interrupt():
        wait_for_pid(pid_file)
        os.kill(os.getpid(), signal.SIGINT)

    # A shell that starts the tests in the background has them ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, console, SLEEPS, str(pid_file))
    finally:
        signal.signal(signal.SIGINT, before)
    wait_until_gone(int(pid_file.read_text()))


QUICKSTART = f"""
import sys
from pathlib import Path
from rich.console import Console
from axolotl_alphalora.quickstart.process import locked, run_python
folder, console = Path(sys.argv[1]), Console()
with locked(folder, console) as lock:
    command = ["-c", {PRINTS!r}, str(folder / "pid")]
    run_python(command, folder / "log", console, name="x", lock=lock)
"""


def test_what_a_killed_quickstart_ran_ends_and_the_next_one_waits_for_it(tmp_path, console):
    """Even while the orphan lives, nothing else writes into the directory."""
    command = [sys.executable, "-c", QUICKSTART, str(tmp_path)]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    child = wait_for_pid(tmp_path / "pid")
    os.kill(child, signal.SIGSTOP)
    killed.kill()
    killed.wait()
    threading.Timer(0.5, os.kill, (child, signal.SIGCONT)).start()
    with locked(tmp_path, console):
        wait_until_gone(child)
    assert f"Waiting for another quickstart to leave {tmp_path}" in printed(console)


def test_a_lock_ends_with_its_holder(tmp_path, console):
    for _ in range(2):
        with locked(tmp_path / "new", console):
            pass
    assert printed(console) == ""
