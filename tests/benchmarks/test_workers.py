"""Contestants in processes of their own say the same as in this one, and end when they should."""

import multiprocessing
import os
import signal
import time
from argparse import Namespace
from contextlib import closing

import psutil
import pytest

import stepping
from benchmarks.contestants import Absent
from benchmarks.entrants import Field
from benchmarks.measures import in_turn
from benchmarks.workers import Worker


def test_each_works_in_a_process_of_its_own_until_it_is_closed():
    one, other = Worker(stepping.counting, 0), Worker(stepping.counting, 5)
    processes = [one.facts, other.facts]
    assert len({os.getpid(), *processes}) == 3
    assert in_turn({"a": one, "b": other}, 3) == {"a": [0.0, 1.0, 2.0], "b": [5.0, 6.0, 7.0]}
    one.close()
    assert [psutil.pid_exists(process) for process in processes] == [False, True]
    other.close()
    assert not psutil.pid_exists(other.facts)


def test_what_cannot_be_made_says_so_here():
    with pytest.raises(Absent, match="no such model"):
        Worker(stepping.absent, "no such model")


def ends_in_a_step(worker):
    for _ in range(3):
        worker.step()
    return 7


def is_killed_between_steps(worker):
    os.kill(worker.facts, signal.SIGKILL)
    while psutil.pid_exists(worker.facts):
        time.sleep(0.01)
    return -signal.SIGKILL


@pytest.mark.parametrize("happens", [ends_in_a_step, is_killed_between_steps])
def test_a_process_that_ends_is_not_waited_for(happens):
    with closing(Worker(stepping.counting, 0)) as worker:
        status = happens(worker)
        with pytest.raises(ChildProcessError, match=f"exit status {status};"):
            worker.step()


def test_other_errors_end_the_process():
    with pytest.raises(ChildProcessError, match="exit status 1;"):
        Worker(stepping.counting, "no number")


def test_a_contestant_counts_the_same_alone_and_beside_others():
    options = Namespace(
        model="tiny", dtype="fp32", device="cpu", nf4=False, batch=1, length=8, dropout=0.05,
        experts=3, rank=4, top_k=2, checkpointing=False, compile_check=False,
    )  # fmt: skip
    with Field(options, separate=False) as field:
        here, _ = field.enter("experts", options, counting=True)
    with Field(options, separate=True) as field:
        facts, run = field.enter("experts", options, counting=True)
        assert facts == here and facts["parameters"] > 0
        assert run.step() > 0
        assert set(field.enter("none", options, counting=False)[0]) == {"parameters"}
    assert not multiprocessing.active_children()
