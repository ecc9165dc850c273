"""The `local` engine: tasks as processes of this machine, forked by a warm forkserver."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import select
import shutil
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hepscale.errors import EngineError, HepScaleError, RunDirectoryError
from hepscale.executor import interposer
from hepscale.executor.engines import task_folder, warm
from hepscale.executor.engines.tail import MOST_BYTES, Tail
from hepscale.executor.task import (
    EngineEvent,
    FrameBytes,
    Notice,
    Task,
    TaskEnded,
    TaskId,
    Usage,
    WorkerJoined,
    WorkerLost,
)
from hepscale.worker import VERSION, layout

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from hepscale.config import Settings
    from hepscale.env.environment import Environment

__all__ = ["LocalEngine"]

log = logging.getLogger(__name__)

_LOOK_S = 0.01
_MOST_RESTARTS = 3
_LEAST_ROOM_BYTES = 1 << 16
_numbers = itertools.count(1)


@dataclass
class _Running:
    """A task that the forkserver has."""

    task: Task
    folder: Path
    ended: TaskEnded | None = None

    def __post_init__(self) -> None:
        self.frames = Tail(self.folder / "frames")

    def remove(self) -> None:
        self.frames.close()
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
    environment
        What the first tasks run in; None: what this process runs in. A task that brings another
        one is begun when those before it have ended, on a worker of its own.
    within
        The command that workers are started with: ``("chroot", "/folder")``, say.
    """

    name = "local"

    def __init__(
        self,
        slots: int,
        settings: Settings,
        preload: Iterable[str] = (),
        environment: Environment | None = None,
        within: Iterable[str] = (),
    ) -> None:
        self._slots = slots
        self._settings = settings
        self._preload = tuple(preload)
        self._environment = environment
        self._within = tuple(within)
        self._server: warm.Forkserver | None = None
        self._socket: socket.socket | None = None
        self._buffer = b""
        self._restarts = 0
        self._waiting: deque[Task] = deque()
        self._running: dict[TaskId, _Running] = {}
        self._events: list[EngineEvent] = []
        self._environ: Path | None = None
        self._error: HepScaleError | None = None
        self._worker = ""
        self._ready: dict[str, Any] = {}
        self._said: set[str] = set()

    def start(self) -> None:
        """Lease a forkserver, a warm one where there is one; it joins when it is ready."""
        self._server = self._lease()
        try:
            self._join(self._server)
        except HepScaleError as error:
            self._join_another(self._server, error)

    def _join_another(self, server: warm.Forkserver, error: HepScaleError) -> None:
        """Replace a warm one whose folder was cleaned away, or that was about to end."""
        if not server.used:
            raise error
        if self._socket is not None:
            self._socket.close()
        server.end()
        warm.give_back(server)
        self._server = self._lease()
        self._join(self._server)

    def _join(self, server: warm.Forkserver) -> None:
        self._buffer = b""
        self._socket = server.connect()
        # tasks see the variables as they are now, not as they were when the worker started
        self._environ = server.folder / f"environ-{next(_numbers)}"
        try:
            prefix = warm.unpacked(self._settings, self._environment)
            self._environ.write_text(json.dumps(warm.worker_environ(prefix)))
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

    def _lease(self) -> warm.Forkserver:
        return warm.lease(self._settings, self._preload, self._environment, self._within)

    def _move(self, environment: Environment | None) -> None:
        """Go on in another environment."""
        assert self._server is not None
        reason = "its tasks want another environment"
        self._events.append(WorkerLost(self._worker, reason, sent_away=True))
        waiting, self._waiting = self._waiting, deque()
        self.close()
        self._environment = environment
        self.start()
        self._waiting = waiting

    def _place(self) -> None:
        while self._waiting and len(self._running) < self._slots and self._socket is not None:
            assert self._server is not None
            if self._waiting[0].environment is not self._environment:
                if self._running:
                    return
                self._move(self._waiting[0].environment)
                # it may have to be unpacked first
                continue
            task = self._waiting.popleft()
            folder = self._server.folder / task.id
            try:
                task_folder.write(folder, task)
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

    def _check_room(self, freed_bytes: int) -> None:
        """Raise where not even a small file can be written: no task would tell its result.

        Nor where it can only because the frames of a task, so large, have just been removed.
        """
        if self._server is not None:
            path = self._server.folder / "room"
            try:
                path.write_bytes(bytes(_LEAST_ROOM_BYTES + freed_bytes))
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
        if self._server is None:
            raise EngineError("The engine was closed.", fix="make a new executor")
        if self._socket is None:
            try:
                self._socket = self._server.connect()
            except HepScaleError as error:
                self._join_another(self._server, error)
        if self._socket is None:
            # its environment is being unpacked, or it imports what it is to keep warm
            time.sleep(timeout_s)
            return
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
            self._check_versions(message)
            self._worker = f"local-{message['pid']}"
            used, host = self._server.used, os.uname().nodename
            self._events.append(WorkerJoined(self._worker, self._slots, host, warm=used))
            self._ready = message
            for text in interposer.notices(message["interposer"]):
                if text not in self._said:
                    self._said.add(text)
                    self._events.append(Notice(text, lasting=True))
            return
        running = self._running.get(message["id"])
        if running is not None:
            usage = Usage(message["wall_s"], message["cpu_s"], message["memory_mb"])
            running.ended = TaskEnded(
                running.task.id,
                message["status"],
                message["detail"],
                usage,
                layout.output_tail(str(running.folder)),
                interposer.interposed(self._ready, message),
            )

    def _check_versions(self, message: dict[str, Any]) -> None:
        """Refuse a worker on which pickles of this process would not mean the same."""
        here = f"HepScale {VERSION}, Python {_minor(sys.version)}"
        there = f"HepScale {message['hepscale']}, Python {_minor(message['python'])}"
        if here != there:
            raise EngineError(
                "The worker has other versions than this process.",
                items=[f"here: {here}", f"worker: {there}, glibc {message['glibc'] or 'unknown'}"],
                cause="the environment was packed with another Python or another HepScale",
                fix='HepScaleExecutor(environment="packed"), to pack the one that runs here',
            )

    def _tail(self) -> None:
        for running in list(self._running.values()):
            data = running.frames.read()
            if data:
                self._events.append(FrameBytes(running.task.id, data))
            # a task that has ended is reported once nothing is left to be read
            if running.ended is not None and len(data) < MOST_BYTES:
                self._events.append(running.ended)
                del self._running[running.task.id]
                running.remove()
                if running.ended.status == "died":
                    # what its chunks had written themselves is gone by now
                    self._check_room(running.frames.offset)
        self._place()

    def _lost(self) -> None:
        """Report the tasks of a forkserver that has died, and start another."""
        server, said = self._server, ""
        if server is not None:
            said = server.said()
            self._events.append(WorkerLost(self._worker, "its process ended"))
        for running in self._running.values():
            while data := running.frames.read():
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


def _minor(version: str) -> str:
    return ".".join(version.split()[0].split(".")[:2])
