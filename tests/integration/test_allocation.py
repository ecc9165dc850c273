"""Memory of tasks on workers of Work Queue: what they are given, and what they may use."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import crew as crews
import packed
import pytest
import queues
import support

import hepscale
from hepscale import Workers
from hepscale.executor import chunking, policy
from hepscale.executor.allocation import LEAST_MEASURED, Allocation
from hepscale.executor.task import ChunkKey

pytestmark = [queues.needs_worker, pytest.mark.usefixtures("few")]

WORKER_MB = 1000
TASK_MB = 500


@pytest.fixture(autouse=True)
def ended():
    yield
    hepscale.shutdown()
    crews.nothing_runs()


@dataclass(order=True)
class Noted:
    """When a chunk held its memory, and in which process."""

    begun_s: float
    ended_s: float
    pid: int


def overlaps(noted):
    """Return the pairs of chunks that held their memory at the same time."""
    return [
        (a, b)
        for a, b in itertools.combinations(noted, 2)
        if a.pid != b.pid and a.begun_s < b.ended_s and b.begun_s < a.ended_s
    ]


def test_as_many_tasks_at_once_as_there_is_memory_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HEPSCALE_VIEW", "lines")
    # a task for each chunk
    monkeypatch.setattr(policy, "MOST_TASK_S", 0.01)
    folder = str(tmp_path)

    def work(item):
        begun_s = time.monotonic()
        held = bytearray(b"x") * (TASK_MB << 20)
        time.sleep(0.2)
        del held
        with open(f"{folder}/{item}", "a") as out:
            out.write(json.dumps([begun_s, time.monotonic(), os.getpid()]) + "\n")
        return item

    workers = Workers(cores=2, memory_mb=WORKER_MB)
    options = {"engine": "workqueue", "workers": workers, "status": True}
    assert packed.calculate(work, range(16), **options) == [*range(16)]
    lines = [path.read_text().splitlines() for path in tmp_path.glob("[0-9]*")]
    noted = sorted(Noted(*json.loads(line)) for line in itertools.chain(*lines))
    assert len(noted) == 16
    # before anything is known both cores are used, after that there is memory for one
    pids = [*dict.fromkeys(one.pid for one in noted)]
    assert len(pids) == 16
    early, late = pids[:LEAST_MEASURED], pids[LEAST_MEASURED + 2 :]
    assert overlaps([one for one in noted if one.pid in early])
    assert not overlaps([one for one in noted if one.pid in late])
    said = capsys.readouterr().err
    told = re.search(r"A task is given (\d+) MB, .* memory for 1 at a time, on 2 cores", said)
    assert told
    assert TASK_MB * 1.25 < int(told[1]) < WORKER_MB
    assert re.search(
        rf"a task used up to [56]\d\d MB of {told[1]} MB, [01]\.\d cores$", said, re.MULTILINE
    )


def halves(chunk):
    """Return the two halves of a chunk whose item is a range, as those of events are split."""
    begin, end = chunk.item
    middle = (begin + end) // 2
    return tuple(
        replace(chunk, key=ChunkKey(f"{chunk.key}/{part}"), item=part)
        for part in ((begin, middle), (middle, end))
    )


def test_chunk_that_needs_more_than_a_worker_has_is_split(tmp_path, monkeypatch):
    monkeypatch.setattr(chunking, "split", halves)
    notes = str(tmp_path / "sizes")

    def work(item):
        size = item[1] - item[0]
        with open(notes, "a") as out:
            out.write(f"{size}\n")
        held = bytearray(b"x") * (size << 20)
        time.sleep(0.15)
        del held
        return item

    options = {"engine": "workqueue", "workers": Workers(memory_mb=WORKER_MB // 2)}
    found = packed.calculate(work, [(0, 600), (600, 1200)], **options)
    assert found == [(0, 300), (300, 600), (600, 900), (900, 1200)]
    assert sorted(Path(notes).read_text().split()) == ["300"] * 4 + ["600"] * 2


def test_task_that_waits_for_a_large_worker_that_goes(tmp_path, monkeypatch):
    # so that one waits, as one that is tried again with more memory would
    monkeypatch.setattr(Allocation, "slots", lambda _, workers: len(workers))
    crew = crews.Crew(tmp_path)
    small = []

    def act():
        (large,) = crews.busy_workers(1)
        small.append(crews.more(memory_mb=WORKER_MB // 4))
        support.wait_for(lambda: len(crews.manager().joined) == 2)
        # the second task is handed out at once, and has no place
        crew.wait(2)
        crews.kill(large)

    try:
        with crews.meanwhile(act):
            workers = Workers(memory_mb=WORKER_MB)
            crew.run(count=30, memory_mb=WORKER_MB // 2, workers=workers)
    finally:
        small[0].stop()


def test_a_worker_that_comes_late_takes_over_half(tmp_path, monkeypatch):
    """Of a long task, where nothing waits."""
    # one task for all of it
    monkeypatch.setattr(policy, "task_length", lambda weights, *_: len([*weights]))
    crew, more = crews.Crew(tmp_path), []

    def act():
        crew.wait(2)
        more.append(crews.more(memory_mb=WORKER_MB))

    try:
        with crews.meanwhile(act):
            crew.run(count=70, seconds=0.2, workers=Workers(memory_mb=WORKER_MB))
        pids = Counter(path.read_text().split()[0] for path in crew.notes.iterdir())
        assert len(pids) == 2
        assert min(pids.values()) > 10
    finally:
        more[0].stop()


def test_item_that_needs_more_than_a_worker_has_is_named():
    def work(item):
        return len(bytearray(b"x") * (WORKER_MB << 20))

    workers = Workers(memory_mb=WORKER_MB // 2)
    error = packed.failing(work, engine="workqueue", workers=workers)
    assert "needs more than a worker has (" in error.failed[0].reason
    assert "memory_mb=" in error.fix
    assert "Workers(" in error.fix
