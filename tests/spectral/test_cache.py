"""A cache entry is sound or as good as absent, whoever wrote it and however that ended."""

import hashlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from axolotl_alphalora.spectral import Cache, cache, default_cache


def files(directory):
    return [path for path in directory.rglob("*") if path.is_file()]


def test_what_was_put_comes_back_under_its_kind_and_key(tmp_path):
    kept = Cache(tmp_path / "made" / "on demand")
    kept.put("layers", "a", {"x": [1, None, "é"]})
    kept.put("layers", "b", [])
    kept.put("names", "a", 1.5)
    again = Cache(tmp_path / "made" / "on demand")
    assert again.get("layers", "a") == {"x": [1, None, "é"]}
    assert again.get("layers", "b") == []
    assert again.get("names", "a") == 1.5
    assert again.get("names", "b") is None


def test_tensors_come_back_bit_for_bit(tmp_path):
    parts = {
        "values": torch.tensor([[0.1, torch.inf, -0.0]], dtype=torch.float64),
        "shape": torch.tensor((3, 5)),
        "half": torch.randn(6, 4).bfloat16()[::2],
    }
    Cache(tmp_path).put_tensors("spectra", "key", parts)
    found = Cache(tmp_path).get_tensors("spectra", "key")
    assert found.keys() == parts.keys()
    for name, part in parts.items():
        assert found[name].dtype == part.dtype
        assert torch.equal(found[name], part)


def test_a_view_is_kept_without_the_tensor_it_views(tmp_path):
    Cache(tmp_path).put_tensors("spectra", "key", {"corner": torch.zeros(1000, 1000)[:2, :2]})
    assert files(tmp_path)[0].stat().st_size < 10_000


def test_without_a_directory_nothing_is_kept():
    nowhere = Cache(None)
    nowhere.put("layers", "a", 1)
    nowhere.put_tensors("spectra", "a", {"x": torch.ones(1)})
    assert nowhere.get("layers", "a") is None
    assert nowhere.get_tensors("spectra", "a") is None
    assert nowhere.directory is None


DAMAGE = {
    "cut off": lambda content: content[:-5],
    "cut off in its head": lambda content: content[:30],
    "empty": lambda content: b"",
    "a byte flipped": lambda content: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
    "a byte of the digest flipped": lambda content: (
        content[:20] + bytes([content[20] ^ 128]) + content[21:]
    ),
    "longer": lambda content: content + b"\0",
    "another format": lambda content: b"alphalora-cache-0\n" + content[18:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_none_and_is_replaced(tmp_path, damage):
    kept = Cache(tmp_path)
    kept.put_tensors("spectra", "key", {"x": torch.arange(3.0)})
    (entry,) = files(tmp_path)
    entry.write_bytes(DAMAGE[damage](entry.read_bytes()))
    assert kept.get_tensors("spectra", "key") is None
    assert kept.get("spectra", "key") is None
    kept.put_tensors("spectra", "key", {"x": torch.arange(3.0)})
    assert torch.equal(kept.get_tensors("spectra", "key")["x"], torch.arange(3.0))
    assert files(tmp_path) == [entry]


@pytest.mark.parametrize("before", [None, "old"])
def test_an_interrupted_write_leaves_no_draft_and_no_half_entry(tmp_path, monkeypatch, before):
    kept = Cache(tmp_path)
    if before is not None:
        kept.put("layers", "a", before)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            kept.put("layers", "a", "new")
    assert len(files(tmp_path)) == (before is not None)
    assert kept.get("layers", "a") == before
    kept.put("layers", "a", "new")
    assert kept.get("layers", "a") == "new"


def test_a_directory_that_cannot_be_written_warns_once(tmp_path):
    (tmp_path / "file").touch()
    unwritable = Cache(tmp_path / "file" / "cache")
    with pytest.warns(UserWarning) as caught:
        unwritable.put("layers", "a", 1)
        unwritable.put_tensors("spectra", "a", {"x": torch.ones(1)})
    (warning,) = caught
    assert str(unwritable.directory) in str(warning.message)
    assert "ALPHALORA_CACHE" in str(warning.message)
    assert unwritable.get("layers", "a") is None


def test_threads_that_fail_to_write_at_once_warn_once(tmp_path, monkeypatch):
    threads = Barrier(4)

    def refuse(*_, **__):
        threads.wait(timeout=30)
        raise OSError("disk full")

    monkeypatch.setattr(cache, "write_whole", refuse)
    full = Cache(tmp_path)
    with pytest.warns(UserWarning, match="disk full") as caught, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: full.put("layers", key, 1), "abcd"))
    assert len(caught) == 1


def test_what_a_read_only_directory_holds_is_still_read(tmp_path, monkeypatch):
    Cache(tmp_path).put("layers", "a", "shared")
    tried = []

    def refuse(path, *_, **__):
        tried.append(path)
        raise PermissionError("read-only file system")

    monkeypatch.setattr(cache, "write_whole", refuse)
    kept = Cache(tmp_path)
    with pytest.warns(UserWarning, match="read-only file system"):
        kept.put("layers", "b", 1)
        kept.put("layers", "c", 1)
    assert len(tried) == 1
    assert kept.get("layers", "a") == "shared"


def test_the_digest_of_a_file_is_known_while_it_is_the_same(tmp_path, monkeypatch):
    file, kept = tmp_path / "file", Cache(tmp_path / "cache")

    def digest():
        return cache.file_digest(file, kept)

    file.write_bytes(b"one")
    os.utime(file, (0, 0))
    first = digest()
    assert first == hashlib.sha256(b"one").hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", None)
        assert digest() == first
    file.write_bytes(b"two")
    assert digest() == hashlib.sha256(b"two").hexdigest()


def test_a_change_that_a_coarse_clock_hides_is_seen_all_the_same(tmp_path, monkeypatch):
    state = [3, time.time_ns(), 0, 0]
    monkeypatch.setattr(cache, "file_state", lambda path: state)
    file, kept = tmp_path / "file", Cache(tmp_path / "cache")
    for content in (b"one", b"two"):
        file.write_bytes(content)
        assert cache.file_digest(file, kept) == hashlib.sha256(content).hexdigest()


WRITER = """
import sys, torch
from pathlib import Path
from axolotl_alphalora.spectral import Cache
kept = Cache(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for repetition in range(8):
    for key in range(10):
        expected = torch.full((2000,), float(key))
        kept.put_tensors("spectra", str(key), {"x": expected})
        found = kept.get_tensors("spectra", str(key))
        assert found is not None and torch.equal(found["x"], expected)
"""


@pytest.mark.usefixtures("fresh_process")
def test_two_processes_that_write_the_same_entries_leave_sound_ones(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate(timeout=60)
        assert writer.returncode == 0, errors.decode()
    assert len(files(tmp_path)) == 10
    for key in range(10):
        assert Cache(tmp_path).get_tensors("spectra", str(key))["x"].eq(key).all()


def test_the_default_directory_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("ALPHALORA_CACHE", raising=False)
    assert default_cache().directory == tmp_path / "xdg" / "axolotl-alphalora" / "spectra"
    monkeypatch.setenv("ALPHALORA_CACHE", str(tmp_path / "own"))
    assert default_cache().directory == tmp_path / "own" / "spectra"
