"""Journals: what is on disk after a run that was cut off, and who finds and removes it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from as_root import mounted

from hepscale.errors import RunDirectoryError
from hepscale.executor import journal
from hepscale.executor.journal import Journal
from hepscale.worker.frames import FrameReader, Kind, encode


def frame(*keys, payload=b"data"):
    raw = encode(Kind.OUTPUT, 3, {"chunks": list(keys), "entries": [1] * len(keys)}, payload)
    return next(FrameReader().feed(raw))


def written(run_dir, name="1", digest="f" * 32, keys=("a", "b")):
    one = Journal(run_dir / name, digest, "Processing")
    for key in keys:
        one.append(frame(key))
    one.close()
    return one.path


def keys(path):
    first, *rest = journal.read(path)
    assert first.kind is Kind.RUN
    return [key for one in rest for key in one.meta["chunks"]]


def test_what_is_written_is_read(tmp_path):
    one = Journal(tmp_path / "runs" / "1", "digest", "Processing")
    frames = [frame("a", "b"), frame("c", payload=b"")]
    one.append(frames[0])
    one.append_split("d", ["d0", "d1"])
    one.append(frames[1])
    first, *rest = one.frames()
    assert first.meta == {"function": "digest", "desc": "Processing"}
    assert [rest[0], rest[2]] == frames
    assert (rest[1].kind, rest[1].meta) == (Kind.SPLIT, {"key": "d", "parts": ["d0", "d1"]})
    one.close()
    assert list(journal.read(one.path)) == [first, *rest]
    assert os.listdir(one.path.parent) == ["journal"]
    assert (one.path.parent.stat().st_mode & 0o777, one.path.stat().st_mode & 0o777) == (
        0o700,
        0o600,
    )


def test_it_appears_with_its_first_frame(tmp_path, monkeypatch):
    seen = []
    rename = Path.rename

    def spy(self, target):
        seen.append((target.exists(), [one.meta["function"] for one in journal.read(self)]))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", spy)
    written(tmp_path)
    assert seen == [(False, ["f" * 32])]


def test_one_that_was_not_begun_is_not_found(tmp_path):
    folder = tmp_path / "1"
    folder.mkdir()
    (folder / "journal.tmp").write_bytes(encode(Kind.RUN, 0, {"function": "d"}))
    assert journal.find(tmp_path, "d", {"a"}) == []
    assert journal.find(tmp_path / "nowhere", "d", {"a"}) == []


def test_a_half_written_tail_is_lost_and_nothing_else(tmp_path):
    path = written(tmp_path, keys=("a", "b", "c"))
    whole = path.read_bytes()
    last = len(frame("c").raw)
    for cut in (1, last // 2, last - 1, last):
        path.write_bytes(whole[:-cut])
        assert keys(path) == ["a", "b"]
    path.write_bytes(whole[:3])
    assert list(journal.read(path)) == []
    assert journal.find(tmp_path, "f" * 32, {"a"}) == []


def test_a_damaged_frame_in_the_middle_is_left_out(tmp_path):
    path = written(tmp_path, keys=("a", "b", "c"))
    data = bytearray(path.read_bytes())
    at = data.rindex(b'"b"')
    data[at + 1] ^= 1
    path.write_bytes(data)
    assert keys(path) == ["a", "c"]


def test_after_a_damaged_header_nothing_is_read(tmp_path):
    path = written(tmp_path, keys=("a", "b", "c"))
    data = bytearray(path.read_bytes())
    data[len(data) - 2 * len(frame("b").raw)] ^= 1
    path.write_bytes(data)
    assert keys(path) == ["a"]


def test_those_that_match_are_found_newest_first(tmp_path):
    old = written(tmp_path, "2026-1", keys=("a", "b"))
    new = written(tmp_path, "2026-2", keys=("b", "c"))
    written(tmp_path, "2026-3", digest="e" * 32, keys=("a", "b", "c"))
    written(tmp_path, "2026-4", keys=())
    assert journal.find(tmp_path, "f" * 32, {"b"}) == [new, old]
    assert journal.find(tmp_path, "f" * 32, {"a"}) == [old]
    assert journal.find(tmp_path, "f" * 32, {"d"}) == []
    assert journal.find(tmp_path, "d" * 32, {"a"}) == []


def test_one_that_only_split_a_chunk_is_found(tmp_path):
    one = Journal(tmp_path / "1", "f", "")
    one.append_split("a", ["b", "c"])
    one.close()
    assert journal.find(tmp_path, "f", {"a"}) == [one.path]


def test_the_oldest_are_pruned_but_not_one_that_is_written(tmp_path):
    for n in range(5):
        written(tmp_path, f"2026-{n}")
    active = Journal(tmp_path / "2025", "f", "")
    (tmp_path / "not-ours").mkdir()
    journal.prune(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["2025", "2026-3", "2026-4", "not-ours"]
    active.append(frame("z"))
    assert keys(active.path) == ["z"]
    active.close()
    journal.prune(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["2026-3", "2026-4", "not-ours"]


def test_one_whose_writer_was_killed_is_read_and_pruned(tmp_path):
    code = (
        "import sys; from pathlib import Path; from hepscale.executor.journal import Journal;"
        "one = Journal(Path(sys.argv[1]), 'f', ''); one.append_split('a', ['b', 'c']);"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "1")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout.readline() == b"ready\n"
        journal.prune(tmp_path, 0)
        assert journal.find(tmp_path, "f", {"a"}) == [tmp_path / "1" / "journal"]
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert journal.find(tmp_path, "f", {"a"}) == [tmp_path / "1" / "journal"]
    journal.prune(tmp_path, 0)
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunDirectoryError, match="HEPSCALE_RUN_DIR") as caught:
        Journal(tmp_path / "file" / "1", "f", "")
    assert str(tmp_path / "file") in caught.value.items[0]


def test_a_disk_that_fills_up_costs_the_journal_and_not_the_run(tmp_path, monkeypatch):
    one = Journal(tmp_path / "1", "f", "")
    one.append(frame("a"))
    size = one.path.stat().st_size
    real, calls = os.write, []

    def short(fd, data):
        # a full disk takes a part of it first
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[:5])

    monkeypatch.setattr(os, "write", short)
    one.append(frame("b"))
    monkeypatch.undo()
    assert one.failed == "No space left on device"
    assert len(calls) == 2
    one.append(frame("c"))
    one.close()
    assert keys(one.path) == ["a"]
    assert one.path.stat().st_size == size


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 64 kB."""
    with mounted(tmp_path / "small", "size=64k") as folder:
        yield folder


@pytest.mark.root
def test_a_really_full_disk(small_disk):
    one = Journal(small_disk / "1", "f", "")
    one.append(frame("a", payload=os.urandom(20_000)))
    one.append(frame("b", payload=os.urandom(60_000)))
    assert one.failed == "No space left on device"
    one.append(frame("c"))
    one.close()
    assert keys(one.path) == ["a"]
    assert journal.find(small_disk, "f", {"a"}) == [one.path]
    (small_disk / "filler").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096))
    with pytest.raises(RunDirectoryError, match="No space left") as caught:
        Journal(small_disk / "2", "f", "")
    assert "full" in caught.value.cause
    assert not (small_disk / "2").exists()
