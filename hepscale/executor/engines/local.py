"""The `local` engine: tasks as processes of this machine, forked by a warm forkserver."""

from __future__ import annotations

import json
import logging
import math
import os
import select
import shutil
import socket
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepscale.errors import EngineError, HepScaleError, RunDirectoryError
from hepscale.executor.engines import warm
from hepscale.executor.task import (
    EngineEvent,
    FrameBytes,
    Task,
    TaskEnded,
    TaskId,
    Usage,
    WorkerJoined,
    WorkerLost,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hepscale.config import Settings

__all__ = ["LocalEngine"]

log = logging.getLogger(__name__)

_LOOK_S = 0.01
# one poll hands over at most this much of each frame file, so that memory stays bounded
_MOST_BYTES = 8 << 20
_MOST_RESTARTS = 3
_TAIL_BYTES = 4096
_LEAST_ROOM_BYTES = 1 << 16


@dataclass
class _Running:
    """A task that the forkserver has, and how far its frame file has been read."""

    task: Task
    folder: Path
    frames: int | None = None
    offset: int = 0
    ended: TaskEnded | None = field(default=None)

    def read(self, most: int = _MOST_BYTES) -> bytes:
        if self.frames is None:
            with suppress(FileNotFoundError):
                self.frames = os.open(self.folder / "frames", os.O_RDONLY | os.O_CLOEXEC)
        if self.frames is None:
            return b""
        data = os.pread(self.frames, most, self.offset)
        self.offset += len(data)
        return data

    def remove(self) -> None:
        if self.frames is not None:
            os.close(self.frames)
        shutil.rmtree(self.folder, ignore_errors=True)


class LocalEngine:
    """Runs tasks on this machine.

    Parameters
    ----------
    slots
        Number of tasks that run at a time.
    settings
        Where scratch folders go and how long workers stay warm.
    preload
        Installed modules that every task is going to import.
    """

    name = "local"

    def __init__(self, slots: int, settings: Settings, preload: Iterable[str] = ()) -> None:
        self._slots = slots
        self._settings = settings
        self._preload = tuple(preload)
        self._server: warm.Forkserver | None = None
        self._socket: socket.socket | None = None
        self._buffer = b""
        self._restarts = 0
        self._waiting: deque[Task] = deque()
        self._running: dict[TaskId, _Running] = {}
        self._events: list[EngineEvent] = []
        self._environ: Path | None = None
        self._error: HepScaleError | None = None

    def start(self) -> None:
        """Lease a forkserver, a warm one where there is one."""
        self._server = warm.lease(self._settings, self._preload)
        try:
            self._socket = self._server.connect()
        except EngineError:
            if not self._server.used:
                raise
            # a warm one whose folder was cleaned away, or that was about to end
            self._server.end()
            warm.give_back(self._server)
            self._server = warm.lease(self._settings, self._preload)
            self._socket = self._server.connect()
        self._buffer = b""
        # tasks see the variables as they are now, not as they were when the worker started
        self._environ = self._server.folder / f"environ-{self._socket.fileno()}-{time.time_ns()}"
        try:
            self._environ.write_text(json.dumps(warm.worker_environ()))
        except OSError as error:
            raise self._no_room(error) from None

    def submit(self, task: Task) -> None:
        """Queue `task`."""
        self._waiting.append(task)
        self._place()

    def poll(self, timeout_s: float) -> list[EngineEvent]:
        """Return what has happened since the last call."""
        if self._error is not None:
            raise self._error
        deadline = time.monotonic() + timeout_s
        try:
            while not self._events:
                self._listen(min(_LOOK_S, max(deadline - time.monotonic(), 0)))
                self._tail()
                if time.monotonic() >= deadline:
                    break
        except HepScaleError as error:
            if not self._events:
                raise
            # what has arrived before is reported first
            self._error = error
        events, self._events = self._events, []
        return events

    def cancel(self, task_id: TaskId) -> None:
        """End a task and its processes."""
        if task_id in self._running:
            self._send({"op": "kill", "id": task_id})
        for task in [task for task in self._waiting if task.id == task_id]:
            self._waiting.remove(task)
            self._events.append(TaskEnded(task_id, "cancelled"))

    def close(self) -> None:
        """End the tasks that still run; the forkserver stays warm for the next run."""
        server, self._server = self._server, None
        if self._socket is not None:
            # the forkserver kills the tasks of a connection that closes; one that a process
            # forked from this one holds too must be shut down
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self._socket = None
        for running in self._running.values():
            running.remove()
        self._running.clear()
        self._waiting.clear()
        if server is not None:
            if self._environ is not None:
                self._environ.unlink(missing_ok=True)
            warm.give_back(server)

    def _place(self) -> None:
        while self._waiting and len(self._running) < self._slots and self._server is not None:
            task = self._waiting.popleft()
            folder = self._server.folder / task.id
            try:
                _write_task(folder, task)
            except OSError as error:
                if not self._server.folder.exists():
                    # its worker has ended, or will now; that is noticed when we listen
                    self._waiting.appendleft(task)
                    self._server.end()
                    return
                shutil.rmtree(folder, ignore_errors=True)
                raise self._no_room(error) from None
            self._running[task.id] = _Running(task, folder)
            self._send(
                {
                    "op": "run",
                    "id": task.id,
                    "dir": str(folder),
                    "memory_mb": task.resources.memory_mb,
                    "environ": str(self._environ),
                }
            )

    def _no_room(self, error: OSError) -> RunDirectoryError:
        return RunDirectoryError(
            "The scratch folder for workers cannot be written.",
            items=[f"{self._settings.scratch_dir}: {error.strerror}"],
            cause="the disk is full",
            fix="export HEPSCALE_SCRATCH_DIR=<a folder with more room>",
        )

    def _check_room(self) -> None:
        """Raise where not even a small file can be written: no task would tell its result."""
        if self._server is not None:
            path = self._server.folder / "room"
            try:
                path.write_bytes(bytes(_LEAST_ROOM_BYTES))
            except OSError as error:
                raise self._no_room(error) from None
            finally:
                path.unlink(missing_ok=True)

    def _send(self, message: dict[str, Any]) -> None:
        # a lost forkserver is noticed, and said, when we listen to it
        if self._socket is not None:
            with suppress(OSError):
                self._socket.setblocking(True)
                self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _listen(self, timeout_s: float) -> None:
        if self._socket is None:
            raise EngineError("The engine was closed.", fix="make a new executor")
        # not select.select, which knows no descriptors above 1023
        waiter = select.poll()
        waiter.register(self._socket, select.POLLIN)
        if not waiter.poll(math.ceil(timeout_s * 1000)):
            return
        try:
            data = self._socket.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._heard(json.loads(line))

    def _heard(self, message: dict[str, Any]) -> None:
        if message["ev"] == "ready":
            assert self._server is not None
            worker = f"local-{message['pid']}"
            used = self._server.used
            self._events.append(WorkerJoined(worker, self._slots, os.uname().nodename, warm=used))
            return
        running = self._running.get(message["id"])
        if running is not None:
            usage = Usage(message["wall_s"], message["cpu_s"], message["memory_mb"])
            running.ended = TaskEnded(
                running.task.id,
                message["status"],
                message["detail"],
                usage,
                _output_tail(running.folder),
            )

    def _tail(self) -> None:
        for running in list(self._running.values()):
            data = running.read()
            if data:
                self._events.append(FrameBytes(running.task.id, data))
            # a task that has ended is reported once nothing is left to be read
            if running.ended is not None and len(data) < _MOST_BYTES:
                self._events.append(running.ended)
                del self._running[running.task.id]
                running.remove()
                if running.ended.status == "died":
                    # what it had written itself is gone by now
                    self._check_room()
        self._place()

    def _lost(self) -> None:
        """Report the tasks of a forkserver that has died, and start another."""
        server, said = self._server, ""
        if server is not None:
            said = server.said()
            self._events.append(WorkerLost(f"local-{server.process.pid}", "its process ended"))
        for running in self._running.values():
            while data := running.read():
                self._events.append(FrameBytes(running.task.id, data))
            ended = running.ended or TaskEnded(running.task.id, "lost", "its worker vanished")
            self._events.append(ended)
            running.remove()
        self._running.clear()
        waiting, self._waiting = self._waiting, deque()
        if server is not None:
            server.end()
        self.close()
        self._restarts += 1
        if self._restarts > _MOST_RESTARTS:
            raise EngineError(
                f"The worker process of this machine ended {self._restarts} times in one run.",
                items=said.splitlines()[-3:],
                cause="the machine is short of memory, or something kills its processes",
                fix="hepscale doctor",
            )
        log.warning("the worker process ended, starting another: %s", said.strip()[-500:])
        self.start()
        self._waiting = waiting


def _write_task(folder: Path, task: Task) -> None:
    folder.mkdir(mode=0o700)
    depth = max((_steps_up(one.name) for one in task.inputs), default=0)
    cwd = folder.joinpath("work.d", *["_"] * depth)
    cwd.mkdir(parents=True)
    for one in task.inputs:
        link = Path(os.path.normpath(cwd / one.name))
        link.parent.mkdir(parents=True, exist_ok=True)
        # a name like a/../b needs the folder a
        (cwd / one.name).parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(one.source)
    (folder / "work").write_bytes(task.work)
    spec = {
        "task": task.id,
        "attempt": task.attempt,
        "payload": str(task.payload),
        "code": str(task.code) if task.code else None,
        "cwd": str(cwd),
        "isolate": task.isolate,
        "frame_interval_s": task.frame_interval_s,
        "compression": task.compression,
    }
    (folder / "task.json").write_text(json.dumps(spec))


def _steps_up(name: str) -> int:
    """Return how many folders a relative name climbs up."""
    parts = Path(os.path.normpath(name)).parts
    return sum(part == os.pardir for part in parts)


def _output_tail(folder: Path) -> str:
    """Return the last of what a task printed."""
    texts = []
    for name in ("stdout", "stderr"):
        with suppress(OSError), open(folder / name, "rb") as stream:
            stream.seek(max(os.fstat(stream.fileno()).st_size - _TAIL_BYTES, 0))
            texts.append(stream.read().decode(errors="replace"))
    return "".join(texts)
