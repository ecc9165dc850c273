"""What is said, and when, of workers that have no room for a task."""

from __future__ import annotations

import pytest

from hepscale.errors import EngineError
from hepscale.executor.engines import queue_room
from hepscale.executor.engines.queue import QueueFile, QueueTask, QueueWorkerJoined


@pytest.fixture
def room(monkeypatch):
    monkeypatch.setattr(queue_room, "_PATIENCE_S", 0.0)
    return queue_room.Room()


@pytest.fixture
def task(tmp_path):
    layer = tmp_path / "layer"
    layer.write_bytes(bytes(7_100_000))
    inputs = (QueueFile(layer, "layer"), QueueFile(tmp_path, "hepscale"))
    return QueueTask("true", inputs, cores=2, memory_mb=500, disk_mb=12)


def worker(cores=2, memory_mb=500, disk_mb=20):
    return QueueWorkerJoined("a:1", "one", cores, memory_mb, disk_mb)


@pytest.mark.parametrize(
    ("one", "cause", "fix"),
    [
        (worker(disk_mb=19), "disk of a worker", "workdir="),
        (worker(memory_mb=499), "more memory", "memory_mb=500)"),
        (worker(cores=1), "fewer cores", "cores=2)"),
        (worker(), "other tasks", "hepscale.shutdown()"),
    ],
)
def test_what_is_lacking_is_the_cause(room, task, one, cause, fix):
    with pytest.raises(EngineError) as caught:
        room.check([one], [task], own=True)
    error = caught.value
    assert error.items[0] == "a task asks for 2 cores, 500 MB of memory, a disk of 20 MB"
    assert cause in error.cause
    assert fix in error.fix


def test_of_workers_that_are_not_its_own_it_is_said(room, task):
    workers = [worker(1, 400, 900), worker(memory_mb=100), worker(1, 500, 5)]
    assert room.check(workers, [task], own=False) == (
        "No worker has room for what a task needs: "
        "a task asks for 2 cores, 500 MB of memory, a disk of 20 MB; "
        "the largest worker has 2 cores, 100 MB of memory, a disk of 20 MB."
    )


def test_it_has_to_last(monkeypatch, task):
    now = [1.0]
    monkeypatch.setattr(queue_room.time, "monotonic", lambda: now[0])
    room = queue_room.Room()

    def said(at, workers, tasks):
        now[0] = at
        return room.check(workers, tasks, own=False)

    assert not said(1, [worker()], [task])
    assert not said(20, [worker()], [task])
    # a worker has one, or no worker is there, or no task
    assert not said(21, [worker()], [])
    assert not said(22, [worker()], [task])
    assert not said(41, [], [task])
    assert not said(42, [worker()], [task])
    assert not said(61, [worker()], [task])
    assert said(62, [worker()], [task])
    # and it is said once
    assert not said(63, [worker(), worker(disk_mb=30)], [task])
    assert not said(64, [], [])
    assert not said(65, [worker()], [task])
    assert said(85, [worker()], [task])
