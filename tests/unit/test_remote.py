"""The client of a task reminds a worker that does not look: signals can be missed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from hepscale.worker import remote

# misses some of its signals, then reads the file, and goes on like this
_DEAF = """
import signal, sys
path, missed = sys.argv[1], int(sys.argv[2])
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
print("ready", flush=True)
while True:
    for _ in range(1 + missed):
        signal.sigwait({signal.SIGCHLD})
    with open(path, "rb") as stream:
        print(len(stream.read()), flush=True)
"""


@pytest.fixture(params=[0, 2])
def deaf(request, tmp_path):
    command = [sys.executable, "-c", _DEAF, tmp_path / "frames", str(request.param)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        # whoever waits for what it says does not wait for ever
        late = threading.Timer(10, process.kill)
        late.start()
        yield process
        late.cancel()
        process.kill()


@pytest.fixture
def frames(tmp_path):
    made = remote._FrameFile(str(tmp_path / "frames"))
    yield made
    os.close(made.notify)


def append(path):
    with open(path, "ab") as out:
        out.write(b"frame")


def test_while_a_task_runs(deaf, frames, tmp_path):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        followed = threading.Thread(target=remote._follow, args=(ours, frames, deaf.pid))
        followed.start()
        begun_s = time.monotonic()
        for at in range(1, 3):
            append(tmp_path / "frames")
            assert deaf.stdout.readline() == f"{5 * at}\n"
        assert time.monotonic() - begun_s < 3
        theirs.send(b"\n")
        followed.join(5)
    assert not followed.is_alive()


def test_at_the_end_of_a_task(deaf, frames, tmp_path):
    append(tmp_path / "frames")
    begun_s = time.monotonic()
    assert frames.is_carried(deaf.pid)
    assert time.monotonic() - begun_s < 2
    assert deaf.stdout.readline() == "5\n"


def test_a_worker_that_never_looks(frames, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_LAST_LOOK_S", 0.3)
    with subprocess.Popen(["sleep", "60"]) as process:
        append(tmp_path / "frames")
        assert not frames.is_carried(process.pid)
        process.kill()
