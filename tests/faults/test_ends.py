"""Managers that end, frames that arrive damaged, workers out of reach: every item counts once."""

from __future__ import annotations

import os
import pickle
import re
import signal
import sys
import time
from pathlib import Path

import crew as crews
import pytest
import queues
import support
from as_root import mounted
from crew import meanwhile

import hepscale
from hepscale import Workers
from hepscale.executor import journal
from hepscale.executor.engines import manager as managers
from hepscale.executor.engines import queue_room, workqueue
from hepscale.worker.frames import Kind

pytestmark = [queues.needs_worker, pytest.mark.usefixtures("few")]


# -- the end of the manager ------------------------------------------------------------------------

# a script that is seen to import it would have all packed that it imports
_SCRIPT = "import sys\n__import__(sys.argv[1]).resumed(*sys.argv[2:])\n"


@pytest.mark.parametrize("end", ["interrupt", "kill"])
def test_a_new_process_runs_the_rest(crew, tmp_path, end):
    given = (tmp_path / "a.py", _SCRIPT, "crew", tmp_path, crews.engine)
    with support.script(*given, HEPSCALE_RUN_DIR=str(tmp_path / "runs")) as started:
        crew.wait(30)
        if end == "kill":
            started.kill()
        else:
            started.interrupt()
            counted = started.finish()
            assert counted
    crews.nothing_runs()
    before = crew.times()
    if end == "kill":
        (path,) = (tmp_path / "runs").glob("*/journal")
        frames = [one for one in journal.read(path) if one.kind is Kind.OUTPUT]
        counted = [item for one in frames for item in pickle.loads(one.payload)]
        assert counted
    assert len(before) < 60
    with support.script(*given, HEPSCALE_RUN_DIR=str(tmp_path / "runs")) as started:
        assert started.finish() == [*range(60)]
    again = {item for item, times in crew.times().items() if times > before.get(item, 0)}
    assert again == {*range(60)} - {*counted}
    # of each of two slots, what it has done since its last frame
    assert len(again & {*before}) <= 2 * 8


def test_ctrl_c_in_this_process(crew):
    def act():
        crew.wait(20)
        os.kill(os.getpid(), signal.SIGINT)

    workers = Workers(count=2)
    with meanwhile(act), pytest.raises(KeyboardInterrupt) as caught:
        crew.run(workers=workers)
    error = support.complete(caught.value)
    assert isinstance(error, hepscale.RunInterrupted)
    counted = error.partial_output
    assert 0 < len(counted) < 60
    assert len(counted) == len({*counted})
    assert {*counted} <= {*crew.times()}
    # and the workers are still good
    crew.run(count=10, workers=workers)


def test_ctrl_c_twice(crew):
    def act():
        crew.wait(10)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), meanwhile(act):
        crew.run()
    crew.run(count=10)


# -- frames ----------------------------------------------------------------------------------------


def _spoil(how, marker):
    """Return what spoils the frames of a task, once."""

    def act(item):
        if item == 7 and not os.path.exists(marker):
            with open(marker, "w"):
                pass
            if how == "bit":
                module = sys.modules["hepscale_worker.chunks"]
                encode = module.encode

                def damaged(kind, *args):
                    data = bytearray(encode(kind, *args))
                    data[-1] ^= kind == module.Kind.OUTPUT
                    return bytes(data)

                module.encode = damaged
                return
            frames = next(one for one in Path.cwd().parents if (one / "frames").exists()) / "frames"
            if how == "garbage":
                with open(frames, "ab") as out:
                    out.write(b"garbage" * 20)
            elif how == "cut":
                os.truncate(frames, 10)
            else:
                frames.unlink()

    return act


@pytest.mark.parametrize("how", ["bit", "garbage", "cut", "removed"])
@pytest.mark.parametrize("seconds", [0.02, 0.2])
def test_damaged_frames_are_run_again(crew, tmp_path, how, seconds):
    marker = tmp_path / "spoilt"
    crew.run(count=30, seconds=seconds, act=_spoil(how, str(marker)))
    assert marker.exists()
    assert crew.times()[7] > 1


# -- a chunk that takes its forkserver along -------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 3, 8])
def test_a_chunk_that_kills_the_forkserver_is_given_up(crew, retries):
    def act(item):
        if item == 5:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)

    with pytest.raises(hepscale.ChunksFailed) as caught:
        crew.run(count=20, act=act, retries=retries)
    error = support.complete(caught.value)
    assert sorted(error.partial_output) == [item for item in range(20) if item != 5]
    assert error.failed[0].attempts == retries + 1
    assert "the forkserver of its worker was killed" in error.failed[0].reason


# -- disks -----------------------------------------------------------------------------------------


@pytest.mark.root
def test_a_worker_whose_disk_is_too_small(crew, tmp_path):
    started = []
    with mounted(tmp_path / "small", "size=4m") as small:

        def act():
            crews.busy_workers(1)
            started.append(crews.more(workdir=small))

        try:
            with meanwhile(act):
                crew.run(count=80, workers=Workers())
        finally:
            started[0].stop()


@pytest.mark.root
def test_disks_that_are_all_too_small(crew, tmp_path):
    with mounted(tmp_path / "small", "size=4m") as small:
        # TaskVine knows how much it would have to send, and sends nothing
        said = "No worker has room" if crews.engine == "taskvine" else "Workers break off"
        with pytest.raises(hepscale.EngineError, match=said) as caught:
            crew.run(workers=Workers(count=2, workdir=small))
        # less what a worker has written there already
        assert re.search(r"a disk of [1-4] MB", support.complete(caught.value).items[-1])
        hepscale.shutdown()


def test_a_worker_by_hand_that_has_no_room(crew, monkeypatch, told):
    """It is told of, and a larger one may come."""
    monkeypatch.setattr(queue_room, "_PATIENCE_S", 2.0)
    monkeypatch.setattr(workqueue.WorkQueueEngine, "_disk_mb", lambda self, task: 1000)
    check, said = queue_room.Room.check, []

    def noted(*args, **options):
        said.append(check(*args, **options))
        return said[-1]

    monkeypatch.setattr(queue_room.Room, "check", noted)
    started = []

    def act():
        support.wait_for(lambda: managers._pool)
        started.append(crews.more(disk_mb=900))
        support.wait_for(lambda: any(said))
        started.append(crews.more(disk_mb=2000))

    try:
        with meanwhile(act):
            crew.run(workers=None, status=True)
    finally:
        for one in started:
            one.stop()
    (text,) = [text for text in told() if "No worker has room" in text]
    assert "asks for 1 core, " in text
    assert re.search(r"the largest worker has 1 core, .*, a disk of 900 MB", text)


class _Slow:
    """Takes its time to be unpickled."""

    def __reduce__(self):
        # longer than a worker lets young tasks live that it is to kill, on a busy machine too
        return time.sleep, (10,)


def _cut_after_hello():
    """Return what lets a worker say that its task is there, and cuts it off then."""
    said = []

    def change(data):
        if said:
            raise OSError
        if b"HSF1" in data:
            said.append(data)
        return data

    return change


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("most", [workqueue._MOST_VISITS, 99])
def test_workers_that_are_cut_off_when_their_tasks_load(crew, monkeypatch, most):
    # the same one three times, or three of a machine
    monkeypatch.setattr(workqueue, "_MOST_VISITS", most)
    monkeypatch.setattr(workqueue, "_MOST_VISITS_TO_HOST", 3)
    monkeypatch.setattr(workqueue, "_VISITED_S", 0 if most == 99 else 1000)
    started = []

    def act():
        support.wait_for(lambda: managers._pool)
        started.append(crews.Relay(each=_cut_after_hello))
        started.append(crews.more(3 if most == 99 else 1, at=started[0].address))

    slow = _Slow()
    try:
        with meanwhile(act), pytest.raises(hepscale.EngineError, match="Workers break off"):
            crew.run(workers=None, act=lambda item: slow)
    finally:
        for one in reversed(started):
            one.stop()
    assert crew.times() == {}


@pytest.mark.root
def test_a_disk_becomes_full(crew, tmp_path):
    started = []
    with mounted(tmp_path / "small", "size=400m") as small:

        def act():
            # both from the beginning: one alone would take what there is
            support.wait_for(lambda: managers._pool)
            started.extend((crews.more(workdir=small), crews.more()))
            crews.busy_workers(2)
            with open(small / "much", "wb") as out:
                try:
                    while True:
                        out.write(bytes(1 << 20))
                        out.flush()
                except OSError:
                    pass
            time.sleep(3)
            (small / "much").unlink()

        try:
            with meanwhile(act):
                crew.run(count=120, workers=None)
        finally:
            for one in started:
                one.stop()
