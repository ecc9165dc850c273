"""Chunks that need more memory or time than they may have."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from analysis import tally, where
from support import BAD, broken, check, failing, only, ranges, run, tally_of

from hepscale import machine

pytestmark = pytest.mark.usefixtures("settled", "nothing_left")


def test_sleeps_for_ever(files):
    error = failing(only(BAD, lambda events: time.sleep(1000)), files.fileset, wall_s=1.5)
    check(error, files, "wall", "did not end within 1.5 s", "raise wall_s=")


def memory_of_a_task(files):
    def look(events):
        with open("/proc/self/statm") as stream:
            return {int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1_000_000}

    return max(run(look, {"data": files.good[:1]}))


def test_chunk_that_needs_too_much_memory_is_split(files):
    def process(events):
        kept = np.ones(len(events) * 20 << 17)
        time.sleep(0.15)
        assert kept.all()
        return tally(events)

    limit = memory_of_a_task(files) + 150
    out = run(process, {"data": files.good[:1]}, chunksize=20, memory_mb=limit)
    chunks = out["chunks"]
    assert out == tally_of(chunks)
    assert out["events"] == 60
    assert {stop - start for _, start, stop in chunks} == {5}


@pytest.mark.parametrize("how", ["slowly", "at once"])
def test_event_that_needs_too_much_memory_is_found(files, how):
    def process(events):
        if 23 in events.x.to_list():
            kept = [np.ones(8 << 30) if how == "at once" else None]
            while True:
                kept.append(np.ones(10 << 17))
                time.sleep(0.01)
        return tally(events)

    error = failing(process, files.fileset, memory_mb=memory_of_a_task(files) + 150)
    assert broken(error) == {("good_0.root", 23, 24)}
    assert error.failed[0].kind == "memory"
    assert "entries 23 to 24: needs more than" in str(error)
    assert ("MB of that from the start" if how == "slowly" else "Unable to allocate") in str(error)
    assert "memory_mb=" in error.fix
    out = error.partial_output
    assert out == tally_of(out["chunks"])
    assert out["events"] == 179
    assert error.fact == "1 of 22 chunks failed, 21 are counted."
    assert run(tally, files.fileset) == tally_of(ranges(files.good))


def test_memory_error_counts_as_too_much_memory(files):
    def process(events):
        if len(events) > 5:
            raise MemoryError
        return tally(events)

    assert run(process, files.fileset) == tally_of(ranges(files.good, 5))


def test_every_event_needs_too_much_memory(files, tmp_path):
    def process(events):
        (tmp_path / f"{where(events)}").touch()
        raise MemoryError

    error = failing(process, {"data": files.good[:1]}, chunksize=60)
    assert {one.kind for one in error.failed} == {"memory"}
    assert "memory_mb=" in error.fix
    # a chunk of 100,000 events must not become 200,000 tasks before anybody is told
    assert len(os.listdir(tmp_path)) <= 40


def test_every_event_of_one_chunk_needs_too_much_memory(files, tmp_path):
    def process(events):
        (tmp_path / f"{where(events)}").touch()
        if where(events)[0] == "good_1.root":
            raise MemoryError
        return tally(events)

    error = failing(process, files.fileset, chunksize=60)
    assert len(os.listdir(tmp_path)) <= 2 + 40
    # what was not split down to one event is listed all the same
    assert {at for _, *part in broken(error) for at in range(*part)} == set(range(60))
    assert {name for name, *_ in broken(error)} == {"good_1.root"}
    assert error.partial_output == tally_of(ranges([files.good[0], files.good[2]], 60))


def test_more_tasks_at_a_time_than_there_are_cores(files, told):
    cores = machine.usable_cores()
    # once, although coffea makes two runs of it
    options = {"cores": cores + 1, "metadata_cache": {}, "status": True}
    assert run(tally, files.fileset, **options) == tally_of(ranges(files.good))
    assert told() == [f"{cores + 1} cores are to be used, and this machine has {cores} to give."]
