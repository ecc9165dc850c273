"""What happens to a run when something dies, is stopped, or comes back: nothing counted twice."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import numpy as np
import pytest
from analysis import tally, where
from support import (
    BAD,
    Gate,
    as_json,
    broken,
    complete,
    failing,
    processes,
    ranges,
    run,
    scratch,
    script,
    tally_of,
    wait_for,
)

import hepscale
from hepscale import HepScaleExecutor
from hepscale.executor.engines import warm

pytestmark = pytest.mark.usefixtures("settled", "nothing_left")


BEFORE_BAD = ("good_1.root", 10, 20)


def expected(files):
    return tally_of(ranges(files.good))


# -- chunks that take their worker with them -----------------------------------------------------


def test_chunk_that_kills_its_worker_once(files, tmp_path):
    def process(events):
        if where(events) == BAD and not os.listdir(tmp_path):
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return tally(events)

    assert run(process, files.fileset, retries=1) == expected(files)
    assert os.listdir(tmp_path) == ["died"]


def test_chunk_that_kills_its_worker_every_time(files, tmp_path):
    def process(events):
        if where(events) == BAD:
            (tmp_path / str(len(os.listdir(tmp_path)))).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return tally(events)

    error = failing(process, files.fileset, retries=2)
    assert len(os.listdir(tmp_path)) == 3
    assert broken(error) == {BAD}
    assert error.failed[0].attempts == 3
    assert error.failed[0].kind == "died"
    assert f"{files.good[1]}, entries 20 to 30: its process ended 3 times" in str(error)
    assert "SIGKILL" in str(error)
    assert error.partial_output == tally_of(ranges(files.good) - {BAD})
    assert run(tally, files.fileset) == expected(files)


def test_every_chunk_kills_its_worker(files, tmp_path):
    def process(events):
        (tmp_path / str(where(events))).touch()
        os._exit(3)

    error = failing(process, files.fileset)
    assert error.fact.startswith("Stopped early")
    assert "exit code 3" in str(error)
    assert len(os.listdir(tmp_path)) <= 8
    assert run(tally, files.fileset) == expected(files)


def test_frames_of_a_task_that_dies_later_are_kept(files, tmp_path):
    """The chunks that a task had told about before it died are not run again."""

    def process(events):
        with open(tmp_path / "ran", "a") as out:
            out.write(f"{where(events)}\n")
        if where(events) == BEFORE_BAD:
            # long enough for a frame to be due when it is done
            time.sleep(0.3)
        if where(events) == BAD and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return tally(events)

    assert run(process, files.fileset, retries=1, cores=1) == expected(files)
    ran = (tmp_path / "ran").read_text().splitlines()
    assert ran.count(str(BAD)) == 2
    assert {ran.count(str(one)) for one in ranges(files.good) - {BAD}} == {1}


# -- the forkserver ------------------------------------------------------------------------------


def test_forkserver_that_is_killed_in_mid_run(files, tmp_path):
    killed = tmp_path / "killed"

    def process(events):
        if where(events) == BAD and not killed.exists():
            killed.touch()
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)
        return tally(events)

    assert run(process, files.fileset, retries=1) == expected(files)
    assert killed.exists()


def test_forkserver_that_dies_again_and_again(files):
    def process(events):
        if where(events) == BAD:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)
        return tally(events)

    error = failing(process, files.fileset, hepscale.EngineError, retries=9)
    assert "4 times" in error.fact
    assert "hepscale doctor" in error.fix
    chunks = error.partial_output["chunks"]
    assert error.partial_output == tally_of(chunks)
    assert BAD not in chunks
    assert run(tally, files.fileset) == expected(files)


def test_forkserver_that_died_between_two_runs(files):
    for pid in processes():
        os.kill(pid, signal.SIGKILL)
    assert run(tally, files.fileset) == expected(files)


def test_forkserver_that_dies_as_the_next_run_begins(files):
    """It lives when it is leased, and does not listen any more."""
    run(tally, files.fileset)
    (server,) = warm._pool.values()
    (server.folder / "s").unlink()
    end = threading.Timer(0.3, server.process.kill)
    end.start()
    assert run(tally, files.fileset) == expected(files)
    end.join()
    assert server.process.returncode is not None


def test_second_run_finds_the_workers_warm(files):
    def parents(events):
        return {os.getppid()}

    (pid,) = run(parents, files.fileset)
    assert pid in processes()
    assert run(parents, files.fileset, cores=1, compression=None) == {pid}
    HepScaleExecutor().close()
    assert pid not in processes()
    assert run(parents, files.fileset) != {pid}


def test_close_and_shutdown_leave_nothing(files):
    for end in (HepScaleExecutor().close, hepscale.shutdown):
        run(tally, files.fileset)
        assert len(processes()) == 1
        end()
        assert processes() == {}
        assert os.listdir(os.environ["HEPSCALE_SCRATCH_DIR"]) == []


def test_idle_workers_end(files, monkeypatch):
    monkeypatch.setenv("HEPSCALE_IDLE_S", "0.2")
    hepscale.shutdown()
    assert run(tally, files.fileset) == expected(files)
    wait_for(lambda: not processes() and not scratch())

    def slow(events):
        time.sleep(0.05)
        return tally(events)

    # a run is not idle, whatever it waits for
    assert run(slow, files.fileset) == expected(files)


# -- tasks do not inherit from one another -------------------------------------------------------


def test_random_numbers_differ_between_tasks(files):
    def draw(events):
        return {(os.getpid(), float(np.random.random())), where(events)}

    found = [one for one in run(draw, files.fileset) if len(one) == 2]
    assert len({pid for pid, _ in found}) > 1
    assert len({number for _, number in found}) == 18


def test_variables_are_as_they_are_when_the_run_starts(files, monkeypatch):
    def look(events):
        return {os.environ.get("YEAR"), os.environ.get("OMP_NUM_THREADS")}

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("YEAR", "2017")
    assert run(look, files.fileset) == {"2017", "1"}
    monkeypatch.setenv("YEAR", "2018")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert run(look, files.fileset) == {"2018", "2"}
    monkeypatch.delenv("YEAR")
    assert run(look, files.fileset) == {None, "2"}


def test_what_a_task_changes_is_gone_with_it(files):
    def change(events):
        os.environ["YEAR"] = "1999"
        os.chdir("/")
        np.set_printoptions(precision=1)
        return {os.environ["YEAR"]}

    def look(events):
        open("left-here", "w").close()
        return {os.environ.get("YEAR"), np.get_printoptions()["precision"]}

    assert run(change, files.fileset) == {"1999"}
    assert run(look, files.fileset) == {None, 8}
    assert not os.path.exists("left-here")


# -- Ctrl-C and the end of the manager -----------------------------------------------------------

_SCRIPT = """
import json, os, sys, time
from pathlib import Path
import hepscale
from analysis import tally, where
from support import Gate, as_json, run

files, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
fileset = {"data": files}
gate = Gate(folder)

def process(events):
    if where(events)[0] == "good_2.root":
        gate.wait()
    return tally(events)

try:
    run(process, fileset)
except hepscale.RunInterrupted as error:
    told = {"text": str(error), "output": as_json(error.partial_output)}
    told["again"] = as_json(run(tally, fileset))
    print(json.dumps(told))
except KeyboardInterrupt as error:
    told = {"type": type(error).__name__}
    told["again"] = as_json(run(tally, fileset))
    print(json.dumps(told))
"""


def interrupted(files, tmp_path):
    return script(tmp_path / "a.py", _SCRIPT, json.dumps(files.good), tmp_path / "gate")


def arrived(tmp_path):
    """Wait until a task of a script's run is held up."""
    wait_for(lambda: list((tmp_path / "gate").glob("came-*")))


def test_ctrl_c_once(files, tmp_path):
    with interrupted(files, tmp_path) as started:
        arrived(tmp_path)
        started.interrupt()
        told = started.finish()
    assert "chunks are counted." in told["text"]
    assert "resume=True" in told["text"]
    chunks = {tuple(one) for one in told["output"]["chunks"]}
    assert told["output"] == as_json(tally_of(chunks))
    assert chunks
    assert not chunks & ranges(files.good[2:])
    assert told["again"] == as_json(expected(files))


def test_ctrl_c_twice(files, tmp_path):
    with interrupted(files, tmp_path) as started:
        arrived(tmp_path)
        started.interrupt()
        started.interrupt()
        told = started.finish()
    # a second one that comes when the first has ended the run is an ordinary one
    assert told["again"] == as_json(expected(files))


class Sum:
    """An output whose addition is as long as it takes somebody to press Ctrl-C twice."""

    def __init__(self, manager):
        self.manager = manager

    def __add__(self, other):
        if os.getpid() == self.manager:
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
        return self


def test_ctrl_c_twice_ends_a_run_at_once(files):
    manager = os.getpid()

    def process(events):
        return {"sum": Sum(manager)}

    with pytest.raises(KeyboardInterrupt) as caught:
        run(process, files.fileset)
    assert not isinstance(caught.value, hepscale.RunInterrupted)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert run(tally, files.fileset) == expected(files)


def test_manager_that_is_killed(files, tmp_path):
    before = set(processes())
    folders = set(scratch())
    with interrupted(files, tmp_path) as started:
        arrived(tmp_path)
        # the script, its forkserver, a task
        assert len(set(processes()) - before) >= 3
        started.kill()
        wait_for(lambda: set(processes()) <= before)
        wait_for(lambda: set(scratch()) <= folders)


def test_manager_that_ends_without_a_word(files, tmp_path):
    source = """
import json, os, sys
from analysis import tally
from support import as_json, run
out = run(tally, {"data": json.loads(sys.argv[1])})
print(json.dumps(as_json(out)), flush=True)
os._exit(0)
"""
    before = set(processes())
    with script(tmp_path / "a.py", source, json.dumps(files.good)) as started:
        assert started.finish() == as_json(expected(files))
    wait_for(lambda: set(processes()) <= before)


def test_interrupted_in_this_process(files, tmp_path):
    gate = Gate(tmp_path / "gate")

    def process(events):
        if where(events) == BAD:
            gate.arrive()
            os.kill(manager, signal.SIGINT)
            time.sleep(600)
        return tally(events)

    manager = os.getpid()
    with pytest.raises(KeyboardInterrupt) as caught:
        run(process, files.fileset)
    error = complete(caught.value)
    assert isinstance(error, hepscale.RunInterrupted)
    assert error.partial_output == tally_of(error.partial_output["chunks"])
    assert BAD not in error.partial_output["chunks"]
    assert error.failed == ()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert run(tally, files.fileset) == expected(files)
