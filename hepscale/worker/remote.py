"""``python -I FOLDER --task PID``: run the task whose folder this is, for a Work Queue worker.

The folder is a sandbox in the worker's workspace. It holds ``hepscale-task.json``, ``work``, and
what they name. In the workspace a forkserver gets a folder: all tasks of the worker share it, it
starts with the first of them and ends with the worker, whichever way that goes.

The frame file is one that the worker carries back while it grows. The worker looks at it every few
seconds, or at once when it gets a SIGCHLD. What is added after its last look is not carried: the
exit code says whether the whole file has to be.

Exit codes: 0 all frames are on their way, 75 (`FETCH`) they have to be fetched, 90 (`REFUSED`)
this worker cannot run the task, with the reason on standard output.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import time

from . import layout

# each task waits for what is imported here
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["ENDED", "FETCH", "REFUSED", "SEARCHED", "Refused", "connect", "main", "paths"]

FETCH, REFUSED = 75, 90
# begins the line of standard output that says how the task ended
ENDED = "hepscale-ended "
_TOLD = "hepscale-task.json"
# a task that is over sooner sends all of its frames at its end
_QUIET_S = 0.25
_PACE_S = 0.1
# a worker may miss a signal that comes when it is about to wait: it is sent again, after twice as
# long each time
_SLOWEST_PACE_S = 1.0
_LAST_LOOK_S = 5.0
# lists of folders, in which this machine's own count as well
SEARCHED = ("PATH", "LD_LIBRARY_PATH")
_IN_MODIFY, _IN_CLOSE_NOWRITE, _IN_OPEN = 0x2, 0x10, 0x20
_EVENT = struct.Struct("iIII")


class Refused(Exception):
    """This worker cannot run the task."""


class _FrameFile:
    """The frame file, and whether the worker has read all that was written.

    Attributes
    ----------
    notify
        A descriptor that is readable when something happened to the file; -1: not to be had.
    grown
        Whether something was written that the worker has not been told of.
    read
        Whether the worker has read all that was written.
    """

    def __init__(self, path: str) -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        self.notify = -1
        self.grown = False
        # that all is read shows when it is closed that was opened after the last write
        self._opened = False
        self.read = False
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None, use_errno=True)
            self.notify = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            mask = _IN_MODIFY | _IN_CLOSE_NOWRITE | _IN_OPEN
            if self.notify >= 0:
                libc.inotify_add_watch(self.notify, os.fsencode(path), mask)

    def look(self) -> None:
        """Take note of what has happened since the last call."""
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self.notify, 1 << 16)
        at = 0
        while at < len(data):
            _, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size + length
            if mask & _IN_MODIFY:
                self.grown, self._opened, self.read = True, False, False
            elif mask & _IN_OPEN:
                self._opened = True
            elif mask & _IN_CLOSE_NOWRITE:
                self.read = self._opened

    def tell(self, worker: int) -> None:
        """Have the worker look at the file at once."""
        self.grown = False
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCHLD)

    def is_carried(self, worker: int) -> bool:
        """Return whether the worker has read all that there is, after a last look of it."""
        self.look()
        begun_s = time.monotonic()
        next_s, pace_s = begun_s, _PACE_S / 2
        while not self.read and time.monotonic() - begun_s < _LAST_LOOK_S:
            if time.monotonic() >= next_s:
                self.tell(worker)
                next_s, pace_s = time.monotonic() + pace_s, _slower(pace_s)
            select.select([self.notify], [], [], max(next_s - time.monotonic(), 0.0))
            self.look()
        return self.read


def main(package: str, worker: int) -> int:
    """Run the task of the current folder for the process `worker`; return the exit code."""
    here = os.getcwd()
    try:
        with open(_TOLD, encoding="utf-8") as stream:
            told = json.load(stream)
        connection = _join(told["server"], package, worker)
        stream = connection.makefile("r", encoding="utf-8")
        ready = json.loads(stream.readline())
        _check(ready, told["versions"])
        frames = _FrameFile(os.path.join(here, "frames"))
        request = _prepare(here, told)
    except (OSError, ValueError, KeyError, Refused) as error:
        sys.stdout.write(f"{error}\n")
        return REFUSED
    connection.sendall(json.dumps(request).encode() + b"\n")
    told_of = _follow(connection, frames, worker)
    line = stream.readline()
    if not line:
        sys.stdout.write("the forkserver of its worker was killed\n")
        return REFUSED
    ended = {
        **json.loads(line),
        "output_tail": layout.output_tail(here),
        "interposer": ready["interposer"],
    }
    sys.stdout.write(f"\n{ENDED}{json.dumps(ended)}\n")
    sys.stdout.flush()
    return 0 if told_of and frames.is_carried(worker) else FETCH


def _follow(connection: socket.socket, frames: _FrameFile, worker: int) -> bool:
    """Tell the worker of new frames until the task has ended; return whether that was needed."""
    told, next_s, pace_s = False, time.monotonic() + _QUIET_S, _PACE_S
    while True:
        waiting: list[socket.socket | int] = [connection]
        wait_s = None
        if frames.grown or (told and not frames.read):
            wait_s = max(next_s - time.monotonic(), 0.0)
        # what is written in between is carried with the next look
        if frames.notify >= 0 and not frames.grown:
            waiting.append(frames.notify)
        ready, _, _ = select.select(waiting, [], [], wait_s)
        if connection in ready:
            return told
        if ready:
            frames.look()
        else:
            pace_s = _PACE_S if frames.grown else _slower(pace_s)
            frames.tell(worker)
            told, next_s = True, time.monotonic() + pace_s


def _slower(pace_s: float) -> float:
    return min(2 * pace_s, _SLOWEST_PACE_S)


def _prepare(here: str, told: dict[str, Any]) -> dict[str, Any]:
    """Write what the forkserver's child reads; return the request."""
    # programs refuse a proxy that others could read
    for name in os.listdir("credentials") if os.path.isdir("credentials") else ():
        os.chmod(os.path.join("credentials", name), 0o600)
    inputs = [(name, os.path.join(here, path)) for name, path in told["inputs"]]
    places = {
        name: os.path.join(here, told["spec"][name]) if told["spec"][name] else None
        for name in ("payload", "code")
    }
    reads = [*told["spec"]["reads"], *(path for _, path in inputs)]
    spec = {**told["spec"], **places, "cwd": layout.lay_out(here, inputs), "reads": reads}
    with open("task.json", "w", encoding="utf-8") as stream:
        json.dump(spec, stream)
    environ = dict(os.environ)
    for name, there in told["mounted"].items():
        # a list of folders goes on with those of this machine
        environ[name] = paths(*there, environ.get(name, "") if name in SEARCHED else "")
    environ["PATH"] = paths(os.path.join(sys.prefix, "bin"), environ.get("PATH", os.defpath))
    for name, value in told["environ"].items():
        environ[name] = value.replace("{here}", here)
    with open("environ.json", "w", encoding="utf-8") as stream:
        json.dump(environ, stream)
    return {
        "op": "run",
        "id": told["spec"]["task"],
        "dir": here,
        "memory_mb": told["memory_mb"],
        "environ": os.path.join(here, "environ.json"),
    }


def paths(*given: str) -> str:
    """Return lists of folders as one, without what stands there twice."""
    return os.pathsep.join(dict.fromkeys(filter(None, os.pathsep.join(given).split(os.pathsep))))


def _check(ready: dict[str, str], wanted: dict[str, str]) -> None:
    """Refuse a worker on which pickles of the manager would not mean the same."""
    python = ".".join(ready["python"].split(".")[:2])
    if (ready["hepscale"], python) != (wanted["hepscale"], wanted["python"]):
        raise Refused(
            f"the manager has HepScale {wanted['hepscale']} and Python {wanted['python']}, this "
            f"worker HepScale {ready['hepscale']}, Python {python}, glibc {ready['glibc']}"
        )


# -- the forkserver of this worker -----------------------------------------------------------------


def _join(told: dict[str, Any], package: str, worker: int) -> socket.socket:
    """Return a connection to the forkserver, starting it if nobody has."""
    place = os.path.join(os.path.dirname(os.getcwd()), "hepscale")
    folder = os.path.join(place, told["name"])
    os.makedirs(place, mode=0o700, exist_ok=True)
    found = connect(folder)
    if found is not None:
        return found
    lock = os.open(os.path.join(place, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # the kernel gives it back when this process ends, however that happens
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = connect(folder)
        if found is None:
            # what it imports takes as long as all the rest that a task does here
            from .served import start

            found = start(folder, told["settings"], package, worker)
        return found
    finally:
        os.close(lock)


def connect(folder: str) -> socket.socket | None:
    """Return a connection to the forkserver that has this folder; None if there is none."""
    client, at = socket.socket(socket.AF_UNIX), -1
    try:
        # through a descriptor: the path of a socket may have 107 bytes only
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        client.connect(f"/proc/self/fd/{at}/s")
    except OSError:
        client.close()
        return None
    finally:
        if at >= 0:
            os.close(at)
    return client
