"""A frame file as an engine reads it, also one that a task has put something else in place of."""

from __future__ import annotations

import os

import pytest

from hepscale.executor.engines import tail


def test_it_is_read_as_it_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(tail, "MOST_BYTES", 3)
    one = tail.Tail(tmp_path / "frames")
    assert one.read() == b""
    with (tmp_path / "frames").open("wb", buffering=0) as file:
        file.write(b"abcd")
        assert [one.read(), one.read(), one.read()] == [b"abc", b"d", b""]
        file.write(b"e")
        assert (one.read(), one.offset) == (b"e", 5)
    one.close()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_is_not_read(tmp_path, kind):
    path = tmp_path / "frames"
    if kind == "link":
        (tmp_path / "secret").write_bytes(b"secret")
        path.symlink_to(tmp_path / "secret")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    assert tail.Tail(path).read() == b""
    assert len(os.listdir("/proc/self/fd")) == before
