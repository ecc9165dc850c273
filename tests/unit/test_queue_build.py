"""The compiled binding: what is said where something for it is missing; and the logs it reads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from queues import needs_worker

from hepscale.config import Settings
from hepscale.errors import EngineError
from hepscale.executor.engines import queue_build
from hepscale.executor.engines.queue import QueueTaskPlaced, QueueWorkerJoined, QueueWorkerLeft
from hepscale.executor.engines.queue_log import NoticeLog, TransactionLog


def test_library_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_build, "HEADER", tmp_path / "work_queue.h")
    with pytest.raises(EngineError, match="not installed") as caught:
        queue_build.load(Settings(cache_dir=tmp_path))
    assert "apt-get install coop-computing-tools-dev" in caught.value.fix
    assert str(tmp_path / "work_queue.h") in caught.value.items


@needs_worker
def test_compiler_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="cannot be compiled") as caught:
        queue_build.load(Settings(cache_dir=tmp_path))
    assert "compiler" in caught.value.items[0]


@needs_worker
def test_library_without_what_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "libwork_queue.a"
    empty.write_bytes(b"!<arch>\n")
    monkeypatch.setattr(queue_build, "LIBRARIES", (empty,))
    monkeypatch.delitem(sys.modules, "_hepscale_work_queue", raising=False)
    with pytest.raises(EngineError, match="not one that this binding knows") as caught:
        queue_build.load(Settings(cache_dir=tmp_path))
    assert "undefined symbol" in caught.value.items[0]


def test_library_that_is_too_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = tmp_path / "work_queue.h"
    header.write_text("struct work_queue_task *work_queue_wait_for_tag(...);")
    monkeypatch.setattr(queue_build, "HEADER", header)
    monkeypatch.setattr(queue_build, "LIBRARIES", ())
    with pytest.raises(EngineError, match="not one that this binding knows"):
        queue_build.load(Settings(cache_dir=tmp_path))


@needs_worker
def test_cache_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="could not be written"):
        queue_build.load(Settings(cache_dir=tmp_path / "file"))


def test_half_a_line_is_kept_for_later(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("# time manager_pid WORKER worker_id host:port CONNECTION\n")
    log = TransactionLog(path)
    assert log.read() == []
    with path.open("a") as stream:
        stream.write("1 2 WORKER w 10.0.0.1:9  CONNECTION\n1 2 WORKER w RESOURCES ")
        stream.flush()
        assert log.read() == []
        stream.write('{"memory":[100,"MB"],"disk":[7,"MB"],"cores":[4,"cores"]}\n')
        stream.flush()
        assert log.read() == [QueueWorkerJoined("10.0.0.1:9", "w", 4, 100, 7)]
        stream.write('1 2 WORKER w RESOURCES {"cores":[3,"cores"]}\n')
        stream.write("1 2 TASK 5 RUNNING 10.0.0.1:9  FIRST_RESOURCES {}\n1 2 MANAGER END\n")
        stream.write("1 2 WORKER w 10.0.0.1:9  DISCONNECTION IDLE_OUT\n")
        stream.flush()
    assert log.read() == [
        QueueTaskPlaced(5, "10.0.0.1:9"),
        QueueWorkerLeft("10.0.0.1:9", "w", "it was idle for too long"),
    ]
    log.close()


def test_what_has_ended_is_known_until_it_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    log = TransactionLog(path)
    with path.open("a", buffering=1) as stream:
        for number in (5, 6, 7):
            stream.write(f"1 2 TASK {number} WAITING_RETRIEVAL 10.0.0.1:9 \n")
            stream.write(f"1 2 TASK {number} RETRIEVED SUCCESS  0  {{}} {{}}\n")
        assert log.read() == []
        assert log.ended == {5, 6, 7}
        stream.write("1 2 TASK 5 DONE SUCCESS  0  {} {}\n1 2 TASK 6 CANCELED\n")
        assert log.read() == []
    assert log.ended == {7}
    log.close()


def test_refused_workers_are_read_from_notices(tmp_path: Path) -> None:
    path = tmp_path / "log"
    directed: list[Path | None] = []
    log = NoticeLog(path, directed.append)
    path.write_text(
        "now [1] notice: worker (1.2.3.4:5) is using work queue protocol 11, but I am using "
        "protocol 9\nnow [1] notice: worker 1.2.3.4:6 presented the wrong password\nother\n"
    )
    first, second = log.read()
    assert "protocol 11, and this process 9" in str(first)
    assert "password" in str(second)
    log.close()


def test_complaints_go_to_the_newest_queue_that_is_open(tmp_path: Path) -> None:
    directed: list[Path | None] = []
    one, other = (NoticeLog(tmp_path / name, directed.append) for name in ("one", "other"))
    other.close()
    one.close()
    assert directed == [tmp_path / "one", tmp_path / "other", tmp_path / "one", None]
