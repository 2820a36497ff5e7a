"""A file is written whole or not at all."""

import os
import stat

import pytest

from axolotl_alphalora.files import check_writable, write_whole


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_whole(path, "old")

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_text_and_bytes_are_written_as_they_are(tmp_path):
    write_whole(tmp_path / "text", "ü\n")
    write_whole(tmp_path / "bytes", b"\x00\r\n", sync=False)
    assert (tmp_path / "text").read_bytes() == b"\xc3\xbc\n"
    assert (tmp_path / "bytes").read_bytes() == b"\x00\r\n"
    assert stat.S_IMODE((tmp_path / "text").stat().st_mode) == 0o644


def test_a_link_stays_and_what_it_names_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    for target in ("there/old.json", "there/new.json"):
        link = tmp_path / f"link to {target.removeprefix('there/')}"
        link.symlink_to(target)
        (tmp_path / "there/old.json").write_text("old")
        write_whole(link, "content")
        assert link.is_symlink() and (tmp_path / target).read_text() == "content"
    assert sorted(os.listdir(tmp_path / "there")) == ["new.json", "old.json"]
    link = tmp_path / "nowhere"
    link.symlink_to("not/there/yet.json")
    check_writable(link)
    write_whole(link, "content")
    assert (tmp_path / "not/there/yet.json").read_text() == "content"


def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_writable(pipe)
        write_whole(pipe, "content")
        assert os.read(reader, 99) == b"content"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_whether_a_file_can_be_written_is_known_before(tmp_path):
    check_writable(tmp_path / "new" / "deeper" / "file.json")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "below.json", tmp_path / "new" / ("n" * 300)):
        with pytest.raises(OSError, match="Not a directory|name too long"):
            check_writable(path)
