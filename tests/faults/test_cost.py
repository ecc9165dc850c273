"""What it costs when workers are killed: the chunks that they had not sent."""

from __future__ import annotations

import math
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import crew as crews
import queues
import support
from crew import meanwhile

from hepscale import Workers
from hepscale.executor.engines.workqueue import WorkQueueEngine
from hepscale.worker.frames import FrameReader, Kind

pytestmark = queues.needs_worker

_CHUNK_S = 0.05


def _by_the_clock(item):
    """Have frames be written by the interval only, however long writing them takes."""
    sys.modules["hepscale_worker.chunks"]._STREAM_SHARE = math.inf


class _Watched:
    """The tasks that an engine was given."""

    def __init__(self, monkeypatch):
        self.tasks, self.engine = {}, None
        submit = WorkQueueEngine.submit

        def noted(engine, task):
            self.tasks[task.id], self.engine = task, engine
            submit(engine, task)

        monkeypatch.setattr(WorkQueueEngine, "submit", noted)

    def stop(self, worker):
        """Stop the process of a task in its midst; return it, its task, and what it has written."""
        for pid in crews.forkservers(worker):
            with suppress(OSError, StopIteration):
                folders = Path(os.readlink(f"/proc/{pid}/cwd")).parents
                path = next(one for one in folders if (one / "frames").exists()) / "frames"
                os.kill(pid, signal.SIGSTOP)
                frames = list(FrameReader().feed(path.read_bytes()))
                # in its second chunk, or a later one, since it has sent something
                if {one.kind for one in frames[-2:]} == {Kind.BEGIN} and len(frames) > 10:
                    return pid, self.tasks[frames[0].meta["task"]], path
                os.kill(pid, signal.SIGCONT)
        return None

    def has_read(self, task, size):
        """Whether the manager has read so much of what a task has written."""
        running = {one.task.id: one for one in self.engine._running.values()}
        return running[task.id].frames.offset >= size


def test_a_third_of_the_workers_is_killed_at_half_time(crew, few, monkeypatch):
    watched, found = _Watched(monkeypatch), []

    def act():
        crews.busy_workers(3)
        crew.wait(count // 2)

        def stopped():
            return next(((one, of) for one in crews.workers() if (of := watched.stop(one))), None)

        worker, (pid, task, path) = support.wait_for(stopped)
        # all that it has sent is there: the rest is what the kill may cost
        support.wait_for(lambda: watched.has_read(task, path.stat().st_size))
        found.extend((pid, task, path.read_bytes()))
        crews.kill(worker)

    count = 300
    with meanwhile(act):
        crew.run(count=count, seconds=_CHUNK_S, act=_by_the_clock, workers=Workers(count=3))
    pid, task, data = found
    ran = {int(path.name): [*map(int, path.read_text().split())] for path in crew.notes.iterdir()}
    by_killed = {item for item, pids in ran.items() if pid in pids}
    sent = {key for frame in FrameReader().feed(data) for key in frame.meta.get("chunks", ())}
    unsent = {chunk.item for chunk in task.chunks if chunk.key not in sent} & by_killed
    print(f"{len(unsent)} of {len(by_killed)} were not sent")
    assert sent
    assert unsent
    assert {item for item in by_killed if len(ran[item]) > 1} == unsent
    # and that is no more than what a slot does between two frames
    assert len(unsent) <= math.ceil(task.frame_interval_s / _CHUNK_S)
    support.wait_for(lambda: len(crews.workers()) == 3)
