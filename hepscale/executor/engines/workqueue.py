"""The `workqueue` engine: tasks on workers that come and go."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hepscale.errors import EngineError, PackError
from hepscale.executor.engines import manager as managers
from hepscale.executor.engines import task_folder, warm
from hepscale.executor.engines.queue import (
    QueueEnded,
    QueueFile,
    QueueTask,
    QueueTaskPlaced,
    QueueWorkerJoined,
    QueueWorkerLeft,
    QueueWorkerRefused,
)
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
from hepscale.worker import VERSION
from hepscale.worker.remote import ENDED, FETCH

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from hepscale.config import Settings
    from hepscale.env.environment import Environment
    from hepscale.executor.engines.manager import Listening, Manager

__all__ = ["WorkQueueEngine"]

# one poll hands over at most this much of each frame file, so that memory stays bounded
_MOST_BYTES = 8 << 20
_NO_WORKER_S = 60.0
# workers that cannot run a task, one after the other: then it is not the workers
_MOST_REFUSALS = 5
# a worker puts the task into a process group of its own, which it kills; should the task be faster,
# it fails to, and waits for ever for the end of what it could not kill
_LEAD = (
    'read -r _ _ _ _ group _ </proc/$$/stat; [ "$group" = $$ ] && exec "$@"; '
    'command -v setsid >/dev/null && exec setsid "$@"; exec "$@"'
)
# the socket of the worker must not stay open in what outlives it
_CLOSE = "exec " + " ".join(f"{number}<&-" for number in range(3, 10))


@dataclass(eq=False)
class _Running:
    """A task that the queue has, and how far its frame file has been read."""

    task: Task
    folder: Path
    number: int = 0
    worker: str = ""
    stream: int | None = None
    offset: int = 0

    def read(self) -> bytes:
        if self.stream is None:
            with suppress(FileNotFoundError):
                self.stream = os.open(self.folder / "frames", os.O_RDONLY | os.O_CLOEXEC)
        if self.stream is None:
            return b""
        data = os.pread(self.stream, _MOST_BYTES, self.offset)
        self.offset += len(data)
        return data

    def remove(self) -> None:
        if self.stream is not None:
            os.close(self.stream)
        shutil.rmtree(self.folder, ignore_errors=True)


class WorkQueueEngine:
    """Runs tasks on workers of Work Queue.

    Parameters
    ----------
    listening
        Where workers find this process, and who starts them.
    settings
        Where scratch folders go and how long workers stay warm.
    preload
        Installed modules that every task is going to import.
    """

    name = "workqueue"

    def __init__(
        self, listening: Listening, settings: Settings, preload: Iterable[str] = ()
    ) -> None:
        self._listening = listening
        self._settings = settings
        self._preload = tuple(preload)
        self._manager: Manager | None = None
        self._running: dict[int, _Running] = {}
        self._numbers: dict[TaskId, int] = {}
        self._events: list[EngineEvent] = []
        self._alone_since_s: float | None = None
        self._refusals = 0
        self._unsent = 0

    def start(self) -> None:
        """Listen for workers; those of an earlier run of this process are there at once."""
        self._manager = managers.lease(self._settings, self._listening)
        self._manager.events()
        for one in self._manager.joined.values():
            self._joined(one, warm=True)
        self._alone_since_s = None if self._manager.joined else time.monotonic()

    def submit(self, task: Task) -> None:
        """Queue `task`."""
        manager = self._open()
        running = _Running(task, manager.folder / task.id)
        try:
            running.folder.mkdir(mode=0o700)
            (running.folder / "work").write_bytes(task.work)
            told = self._told(task, manager)
            (running.folder / "told").write_text(json.dumps(told))
            inputs = self._inputs(task, running.folder, manager)
        except OSError as error:
            raise warm.scratch_unusable(self._settings.scratch_dir, error) from None
        frames = QueueFile(running.folder / "frames", "frames", watch=True, failure_only=True)
        running.number = manager.queue.submit(
            QueueTask(
                _command(task.environment),
                tuple(inputs),
                (frames,),
                cores=task.resources.cores,
                memory_mb=task.resources.memory_mb or 1,
                disk_mb=task.resources.disk_mb or 1,
                category="hepscale",
            )
        )
        self._running[running.number] = running
        self._numbers[task.id] = running.number
        self._unsent += 1

    def poll(self, timeout_s: float) -> list[EngineEvent]:
        """Return what has happened since the last call."""
        queue = self._open().queue
        end = time.monotonic() + timeout_s
        while True:
            # a task is sent after the library has looked for news: it must not wait for them long
            at_once = self._events or self._unsent
            ended = queue.wait(0.0 if at_once else max(end - time.monotonic(), 0.0))
            self._unsent = max(self._unsent - 1, 0)
            self._hear()
            for running in self._running.values():
                self._tail(running)
            if ended is not None:
                self._take(ended)
            elif (self._events and not self._unsent) or time.monotonic() >= end:
                break
        events, self._events = self._events, []
        return events

    def cancel(self, task_id: TaskId) -> None:
        """End a task and its processes."""
        running = self._running.pop(self._numbers.pop(task_id, -1), None)
        if running is not None and self._manager is not None:
            self._manager.queue.cancel(running.number)
            self._tail(running)
            running.remove()
            self._events.append(TaskEnded(task_id, "cancelled"))

    def close(self) -> None:
        """End the tasks that still run; manager and workers wait for the next run."""
        manager, self._manager = self._manager, None
        if manager is not None:
            for running in self._running.values():
                manager.queue.cancel(running.number)
                running.remove()
            managers.give_back(manager)
        self._running.clear()
        self._numbers.clear()
        self._events.clear()

    def _open(self) -> Manager:
        if self._manager is None:
            raise EngineError("The engine was closed.", fix="make a new executor")
        return self._manager

    # -- what a task is sent -------------------------------------------------------------------

    def _told(self, task: Task, manager: Manager) -> dict[str, Any]:
        environment = task.environment
        served = {
            "idle_s": self._settings.idle_s,
            "preload": self._preload,
            "sys_path": None if environment else warm.installed_path(),
            "known": environment.absent if environment else (),
        }
        about = [served, environment.digest if environment else sys.executable]
        name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        code = "code" if task.code else None
        return {
            "spec": task_folder.spec(task, payload="payload", code=code),
            "inputs": [(one.name, f"inputs/{at}") for at, one in enumerate(task.inputs)],
            "memory_mb": task.resources.memory_mb,
            "environ": {**warm.SINGLE_THREADED, "PYTHONNOUSERSITE": "1"},
            "versions": {"hepscale": VERSION, "python": _minor(sys.version)},
            "server": {"name": f"{name}-{manager.queue.port}", "settings": served},
        }

    def _inputs(self, task: Task, folder: Path, manager: Manager) -> list[QueueFile]:
        files = [
            QueueFile(manager.package, "hepscale", cache=True),
            QueueFile(task.payload, "payload", cache=True),
            QueueFile(folder / "work", "work"),
            QueueFile(folder / "told", "hepscale-task.json"),
        ]
        if task.code is not None:
            files.append(QueueFile(task.code, "code", cache=True))
        for at, one in enumerate(task.inputs):
            files.append(QueueFile(_versioned(one.source, manager), f"inputs/{at}", cache=True))
        if task.environment is not None:
            about = manager.folder / f"environment-{task.environment.digest}"
            if not about.exists():
                about.write_text(task.environment.describe(VERSION))
            files.append(QueueFile(about, "environment", cache=True))
            files += [
                QueueFile(one.path, f"layers/{one.path.name}", cache=True)
                for one in task.environment.layers
            ]
        return files

    # -- what comes back -----------------------------------------------------------------------

    def _tail(self, running: _Running) -> bytes:
        data = running.read()
        if data:
            self._events.append(FrameBytes(running.task.id, data))
        return data

    def _take(self, ended: QueueEnded) -> None:
        running = self._running.pop(ended.id, None)
        if running is None:
            return
        self._numbers.pop(running.task.id, None)
        while self._tail(running):
            pass
        self._events.append(self._ended(ended, running))
        running.remove()

    def _ended(self, ended: QueueEnded, running: _Running) -> TaskEnded:
        task_id = running.task.id
        if ended.status == "lost":
            return TaskEnded(task_id, "lost", f"its worker {running.worker} vanished".strip())
        _, told, line = ended.output.rpartition(f"\n{ENDED}")
        if ended.status == "done" and ended.exit_code in (0, FETCH) and told:
            said = json.loads(line.partition("\n")[0])
            self._refusals = 0
            usage = Usage(said["wall_s"], said["cpu_s"], said["memory_mb"])
            return TaskEnded(task_id, said["status"], said["detail"], usage, said["output_tail"])
        reason = f"{ended.status}, exit code {ended.exit_code}"
        self._refused(ended, reason)
        return TaskEnded(task_id, "lost", reason, output_tail=ended.output[-4096:])

    def _refused(self, ended: QueueEnded, reason: str) -> None:
        """Take note of a worker that could not run a task; raise if none can."""
        self._refusals += 1
        if self._refusals < max(_MOST_REFUSALS, 2 * len(self._open().joined)):
            return
        where = f"{ended.host or ended.worker}: " if ended.host or ended.worker else ""
        told = warm.told_by_stage0(ended.output)
        if told is not None:
            fact, items, cause, fix = told
            raise PackError(fact, items=[f"{where}{one}" for one in items], cause=cause, fix=fix)
        lines = [line for line in ended.output.splitlines() if line.strip()][-3:]
        raise EngineError(
            "Workers cannot run the tasks.",
            items=[f"{where}{line}" for line in lines or [reason]],
            cause="what the workers miss, or another version of HepScale or Python there",
            fix='HepScaleExecutor(environment="packed"), which sends them all that they need',
        )

    def _hear(self) -> None:
        manager = self._open()
        for event in manager.events():
            if isinstance(event, QueueWorkerJoined):
                self._alone_since_s = None
                self._joined(event)
            elif isinstance(event, QueueWorkerLeft):
                self._events.append(WorkerLost(event.worker_id, event.reason))
            elif isinstance(event, QueueWorkerRefused):
                where = event.worker.partition(":")[0]
                self._events.append(Notice(f"A worker at {where} was refused: {event.reason}."))
            elif isinstance(event, QueueTaskPlaced) and event.id in self._running:
                self._running[event.id].worker = event.worker
        if self._alone_since_s is not None:
            self._say_alone(manager, time.monotonic() - self._alone_since_s)

    def _say_alone(self, manager: Manager, alone_s: float) -> None:
        if alone_s >= _NO_WORKER_S:
            self._alone_since_s = None
            command = f"hepscale workers start --password {manager.password} {manager.address}"
            self._events.append(
                Notice(f"No worker has come for {_NO_WORKER_S:.0f} s. To start one: {command}")
            )

    def _joined(self, one: QueueWorkerJoined, *, warm: bool = False) -> None:
        host = one.worker.partition(":")[0]
        self._events.append(WorkerJoined(one.worker_id, one.cores, host, warm=warm))


def _command(environment: Environment | None) -> str:
    """Return what a worker runs in the task's folder, by its shell."""
    if environment is None:
        command = f"{shlex.quote(sys.executable)} -I -S hepscale --task"
    else:
        store = '"${PWD%/*}/hepscale/unpacked"'
        command = f"sh hepscale/stage0.sh environment layers {store} hepscale --task"
    return f"{_CLOSE}; set -- {command}; {_LEAD}"


def _versioned(source: Path, manager: Manager) -> Path:
    """Return a name for an input that changes with it: a worker keeps it by its name."""
    found = source.stat()
    state = f"{source.absolute()}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ino}"
    name = hashlib.sha256(state.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    link = manager.folder / f"input-{name}"
    with suppress(FileExistsError):
        link.symlink_to(source.absolute())
    return link


def _minor(version: str) -> str:
    return ".".join(version.split()[0].split(".")[:2])
