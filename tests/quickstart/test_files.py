"""Whole or not at all; and locks that outlive nobody."""

import os
import subprocess
import sys

import pytest

from axolotl_alphalora.quickstart import files
from axolotl_alphalora.quickstart.files import (
    QuickstartError,
    digest,
    locked,
    read_json,
    write_json,
)


def test_a_damaged_json_file_counts_as_empty(tmp_path):
    path = tmp_path / "file.json"
    assert read_json(path) == {}
    path.write_text('{"half": ')
    assert read_json(path) == {}
    write_json(path, {"ü": 1})
    assert read_json(path) == {"ü": 1}


def test_digest_sees_where_a_part_ends():
    assert digest("ab", "c") != digest("a", "bc")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(files, "_PATIENCE_SECONDS", 0.2)


def test_a_held_lock_names_its_holder_and_ends_with_it(tmp_path):
    path = tmp_path / "sub" / ".lock"
    with locked(path, "The directory"):
        with pytest.raises(QuickstartError, match=f"The directory is in use.*{os.getpid()}"):
            with locked(path, "The directory"):
                pass
    with locked(path, "The directory"):
        pass


def test_a_child_keeps_the_lock(tmp_path):
    path = tmp_path / ".lock"
    with locked(path, "It") as descriptor:
        wait = [sys.executable, "-c", "input()"]
        child = subprocess.Popen(wait, stdin=subprocess.PIPE, pass_fds=(descriptor,))
    with pytest.raises(QuickstartError, match="in use"), locked(path, "It"):
        pass
    child.communicate(b"\n")
    with locked(path, "It"):
        pass
