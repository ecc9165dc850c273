"""Tasks that misbehave in a sandbox, and kill -9 of whoever has to do with it: nothing is left."""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import crew as crews
import pytest
import queues
import sandboxes
from crew import meanwhile
from support import wait_for

import hepscale
from hepscale.worker import proc, scratch

# daemons in a session of their own, and files; then it says that it is there, and goes on
BUSY = """
import os, subprocess, time
for n in range(2):
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    if os.fork() == 0:
        os.setsid()
        while True:
            with open(f"/tmp/{os.getpid()}", "ab") as stream:
                stream.write(bytes(1000))
            time.sleep(0.001)
open("busy", "w").close()
time.sleep(1000)
"""


@pytest.fixture(autouse=True)
def engine():
    """Forkservers of a test's own have no engine."""


@pytest.fixture
def place():
    with sandboxes.place() as one:
        yield one
        wait_for(lambda: not sandboxes.alive(str(one.shared)))
        # others on this machine may mount what they like
        mounts = Path("/proc/self/mountinfo").read_text()
        assert str(one.folder) not in mounts
        assert " /hepscale/" not in mounts


def marked(place):
    return {"MARK": str(place.shared)}


def test_a_fork_bomb(place):
    """Of a user whom the kernel allows 150 processes: it goes off, and is put out."""
    source = """
import os
open("busy", "w").close()
while True:
    try:
        os.fork()
        os.setsid()
    except OSError:
        pass
"""
    within = ["prlimit", "--nproc=150", *sandboxes.as_nobody()]
    with sandboxes.server(place, within) as one:
        folder = one.begin("bomb", source)
        wait_for((folder / "busy").exists)
        wait_for(lambda: len(sandboxes.alive(str(place.shared))) > 100)
        # there is hardly a process left for others of the same user: that is not their end
        one.begin("meanwhile", "result = 1")
        one.send({"op": "kill", "id": "bomb"})
        ended = {told["id"]: told["status"] for told in (one.event(), one.event())}
        assert ended["bomb"] == "cancelled"
        assert ended["meanwhile"] in {"done", "died"}
        # forkserver, nursery, and the cell of the next task
        wait_for(lambda: len(sandboxes.alive(str(place.shared))) <= 3)
        assert one.run("after", "result = 1")[1] == 1


def test_a_task_that_fills_its_private_folders(place):
    source = """
import os
with open("/tmp/large", "wb") as stream:
    try:
        while True:
            stream.write(bytes(1 << 20))
            stream.flush()
    except OSError as error:
        result = error.errno
"""
    with sandboxes.server(place) as one:
        ended, found = one.run("fill", source, memory_mb=200)
        assert (ended["status"], found) == ("done", 28)
        assert ended["left"]["files"] == 1
        assert 90e6 < ended["left"]["bytes"] < 110e6
        # what lies there is memory, and counts as such
        assert ended["memory_mb"] > 90
        source = source.replace("bytes(1 << 20)", "bytes(1 << 16)") + "\nheld = b'x' * (150 << 20)"
        ended, _ = one.run("over", source + "\nimport time; time.sleep(5)", memory_mb=200)
        assert (ended["status"], ended["left"]["files"]) == ("memory", 1)
        assert one.run("after", "import os; result = os.listdir('/tmp')")[1] == []


def test_what_outlives_its_parent_ends_with_the_task(place):
    source = BUSY.replace("time.sleep(1000)\n", "result = 1\n")
    with sandboxes.server(place) as one:
        ended, result = one.run("daemons", source, environ=marked(place))
        assert (ended["status"], result) == ("done", 1)
        wait_for(lambda: len(sandboxes.alive(str(place.shared))) <= 3)


def victims(server, nursery, at_first):
    if at_first:
        return proc.children(nursery)
    return [one for one in proc.children(server.process.pid) if one != nursery]


def killed(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_kill_of_tasks_at_random_moments(place):
    """30 times the task's process, or process 1 of its cell and the next, which ends all others."""
    chance = random.Random(6)
    with sandboxes.server(place) as one:
        (nursery,) = proc.children(one.process.pid)
        for number in range(30):
            folder = one.begin(f"task{number}", BUSY, environ=marked(place))
            time.sleep(chance.uniform(0, 0.06))
            at_first = bool(number % 2)
            # the first to be killed may be of the last task, which the kernel still ends
            while not select.select([one.socket], [], [], 0.01)[0]:
                for victim in victims(one, nursery, at_first):
                    killed(victim)
            ended = one.event()
            # it may be killed before there is a task, which is then told so
            assert (ended["id"], ended["status"]) == (f"task{number}", "died")
            assert folder.exists()
            # the next begins while the kernel still ends the last
        wait_for(lambda: len(sandboxes.alive(str(place.shared))) <= 3)
        assert one.run("after", "result = 1")[1] == 1


@pytest.mark.parametrize("who", ["nursery", "forkserver", "worker"])
def test_kill_of_others_at_random_moments(place, who):
    """7 times each: what they leave is removed by whoever comes next."""
    chance = random.Random(who)
    for _ in range(7):
        worker = subprocess.Popen(["sleep", "1000"])
        one = sandboxes.Server(place, worker=worker.pid)
        try:
            if chance.random() < 0.8:
                assert one.connect()["kind"] == "userns"
                for number in range(2):
                    one.begin(f"task{number}", BUSY, environ=marked(place))
                children = proc.children(one.process.pid)
            else:
                # while it tries what is there, or starts
                children = wait_for(
                    lambda one=one: proc.children(one.process.pid) or one.process.poll(), 10
                )
            time.sleep(chance.uniform(0, 0.1))
            # the nursery was the first
            victims = {"nursery": children[0], "forkserver": one.process.pid, "worker": worker.pid}
            with suppress(ProcessLookupError):
                os.kill(victims[who], signal.SIGKILL)
            one.process.wait(20)
        finally:
            worker.kill()
            worker.wait()
            one.close()
        wait_for(lambda: not sandboxes.alive(str(place.shared)))
        scratch.sweep(str(place.shared))
        assert [path.name for path in place.shared.iterdir()] == ["worker"]


@queues.needs_worker
def test_a_worker_of_work_queue_is_killed(crew, few):
    """In the middle of a run in sandboxes: each item is counted once, nothing is left."""
    boxed = hepscale.Interposer("userns", allow=[f"{crew.notes}:rw"])

    def look(item):
        assert set(os.listdir("/proc")) >= {"1", "self"}
        assert not os.path.exists("/sys")
        assert sys.prefix == "/hepscale/environment"
        # and it is where programs of it have been told that they are
        there = shutil.which("python3")
        assert not there.startswith(("/hepscale", "/usr")), there
        assert subprocess.run([there, "-c", "import cloudpickle"]).returncode == 0
        assert os.statvfs(os.path.dirname(there)).f_flag & os.ST_RDONLY

    with meanwhile(lambda: crews.kill(crews.busy_workers(2)[0])):
        crew.run(count=40, act=look, interposer=boxed)
    state = hepscale.last_run().state
    assert set(state.interposers) == {"userns"}


@queues.needs_worker
def test_workers_of_work_queue_that_have_none(crew, few):
    """They refuse the tasks, with the reason."""
    with pytest.raises(hepscale.EngineError) as caught:
        crew.run(count=2, interposer="parrot")
    assert "The sandbox 'parrot' cannot be had on" in str(caught.value)
    assert "there is no parrot_run on the PATH" in str(caught.value)
