"""What it costs when workers are killed: the chunks that they had not sent."""

from __future__ import annotations

import math

import crew as crews
import queues
import support
from crew import meanwhile

from hepscale import Workers
from hepscale.executor.engines.workqueue import WorkQueueEngine

pytestmark = queues.needs_worker

_CHUNK_S = 0.05
# a frame is on its way for as long, on a machine that does other things too
_CARRIED_S = 0.5


def test_a_third_of_the_workers_is_killed_at_half_time(crew, few, monkeypatch):
    submit = WorkQueueEngine.submit
    intervals_s = []

    def noted(self, task):
        intervals_s.append(task.frame_interval_s)
        submit(self, task)

    monkeypatch.setattr(WorkQueueEngine, "submit", noted)
    killed = set()

    def act():
        busy = crews.busy_workers(3)
        crew.wait(count // 2)
        killed.update(crews.forkservers(busy[0]))
        crews.kill(busy[0])

    count = 300
    with meanwhile(act):
        crew.run(count=count, seconds=_CHUNK_S, workers=Workers(count=3))
    ran = {int(path.name): [*map(int, path.read_text().split())] for path in crew.notes.iterdir()}
    by_killed = {item for item, pids in ran.items() if killed & {*pids}}
    again = {item for item in by_killed if len(ran[item]) > 1}
    # of the killed slot; the chunk that it was at is not noted
    bound = math.ceil((max(intervals_s) + _CARRIED_S) / _CHUNK_S)
    print(f"{len(again)} of {len(by_killed)} run again, at most {bound}: {max(intervals_s):.2f} s")
    assert by_killed
    assert len(again) <= bound
    support.wait_for(lambda: len(crews.workers()) == 3, 15)
