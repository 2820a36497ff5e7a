"""Stages in processes of their own: progress, failure, interruption."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from axolotl_alphalora.quickstart.child import Stage, run_stage
from axolotl_alphalora.quickstart.files import QuickstartError

from .conftest import printed

REPORTS_PID = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"


def stage(tmp_path, program, *arguments, total=None):
    command = [sys.executable, "-c", program, *arguments]
    return Stage("training", command, tmp_path / "training.log", total)


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
    seconds = run_stage(stage(tmp_path, program, total=8), console, offline=True)
    assert seconds > 0
    assert "loss 0.250" in printed(console)
    assert "7/8" in printed(console)


def test_a_failure_shows_the_end_of_the_log(tmp_path, console):
    program = r"""print("first\n" * 60 + "10% bar\r20% bar\nreason [bold]"); raise SystemExit(3)"""
    with pytest.raises(QuickstartError) as error:
        run_stage(stage(tmp_path, program), console, offline=True)
    message = error.value.message
    assert "training failed with exit code 3" in message
    assert "20% bar\nreason [bold]" in message
    assert "10% bar" not in message
    assert message.count("first") == 38
    assert str(tmp_path / "training.log") in message


def test_a_killed_child_is_reported(tmp_path, console):
    program = "import os; os.kill(os.getpid(), 9)"
    with pytest.raises(QuickstartError, match="ended by signal 9 .*out of memory"):
        run_stage(stage(tmp_path, program), console, offline=True)


def test_the_hub_is_off_limits_only_when_asked(tmp_path, console, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    program = "import os; print(os.environ.get('HF_HUB_OFFLINE'))"
    for offline in (True, False):
        run_stage(stage(tmp_path, program), console, offline=offline)
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
            run_stage(stage(tmp_path, REPORTS_PID, str(pid_file)), console, offline=True)
    finally:
        signal.signal(signal.SIGINT, before)
    wait_until_gone(int(pid_file.read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="needs the parent-death signal of Linux")
def test_a_killed_quickstart_takes_its_child_along(tmp_path):
    pid_file = tmp_path / "pid"
    program = f"""
import sys
from pathlib import Path
from rich.console import Console
from axolotl_alphalora.quickstart.child import Stage, run_stage
command = [sys.executable, "-c", {REPORTS_PID!r}, {str(pid_file)!r}]
run_stage(Stage("x", command, Path({str(tmp_path / "log")!r})), Console(), offline=True)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    child = wait_for_pid(pid_file)
    parent.kill()
    parent.wait()
    wait_until_gone(child)
