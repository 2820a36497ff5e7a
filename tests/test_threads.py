"""Threads are taken where cores are idle."""

import os

import pytest
import torch

from axolotl_alphalora.threads import leave_busy_cores, same_threads_after


@pytest.mark.parametrize(
    ("load", "threads"), [(0.1, 4), (1.6, 2), (3.0, 1), (40.0, 1)], ids="load {}".format
)
def test_threads_leave_to_others_what_they_use(monkeypatch, load, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    with same_threads_after():
        torch.set_num_threads(4)
        said = leave_busy_cores()
        assert torch.get_num_threads() == threads
    assert (said is None) == (threads == 4)


def test_a_number_that_was_asked_for_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setattr(os, "getloadavg", lambda: (40.0, 0.0, 0.0))
    with same_threads_after():
        torch.set_num_threads(4)
        assert leave_busy_cores() is None
        assert torch.get_num_threads() == 4
