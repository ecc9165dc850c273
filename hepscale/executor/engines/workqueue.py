"""The engines `workqueue` and `taskvine`: tasks on workers that come and go."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hepscale.errors import EngineError, PackError
from hepscale.executor import interposer
from hepscale.executor.allocation import given_mb
from hepscale.executor.engines import manager as managers
from hepscale.executor.engines import warm
from hepscale.executor.engines.queue import (
    QueueEnded,
    QueueFile,
    QueueTask,
    QueueTaskPlaced,
    QueueWorkerJoined,
    QueueWorkerLeft,
    QueueWorkerRefused,
)
from hepscale.executor.engines.queue_room import Room
from hepscale.executor.engines.shipment import Shipment, command
from hepscale.executor.engines.tail import Tail
from hepscale.executor.shipping import TaskPlaced
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
from hepscale.worker.frames import first_size
from hepscale.worker.remote import ENDED, FETCH, REFUSED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from hepscale.config import Settings
    from hepscale.executor.engines.manager import Listening, Manager

__all__ = ["WorkQueueEngine"]

_NO_WORKER_S = 60.0
# workers that cannot run a task, one after the other: then it is not the workers
_MOST_REFUSALS = 5
# a worker that broke off so often before its task had begun has no room for what tasks need
_MOST_VISITS = 3
# so do those of a machine that did so for so long, whatever they call themselves
_MOST_VISITS_TO_HOST, _VISITED_S = 10, 60.0
# so long after the last task that ended well, workers that cannot run any end the run
_REFUSED_S = 30.0


@dataclass(eq=False)
class _Running:
    """A task that the queue has; it has begun when it said more than that it is there."""

    task: Task
    folder: Path
    queued: QueueTask
    number: int
    worker: str = ""
    begun: bool = False

    def __post_init__(self) -> None:
        self.frames = Tail(self.folder / "frames")
        self._first = b""

    def read(self) -> bytes:
        """Return what the task has added to its frames."""
        data = self.frames.read()
        if not self.begun:
            self._first += data
            self.begun = 0 < first_size(self._first) < len(self._first)
        return data

    def remove(self) -> None:
        self.frames.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class WorkQueueEngine:
    """Runs tasks on workers of Work Queue or TaskVine.

    Parameters
    ----------
    listening
        Where workers find this process, and who starts them.
    settings
        Where scratch folders go and how long workers stay warm.
    preload
        Installed modules that every task is going to import.
    credentials
        Files that prove who the user is, by the variables that name them to programs.
    """

    def __init__(
        self,
        listening: Listening,
        settings: Settings,
        preload: Iterable[str] = (),
        credentials: Mapping[str, Path] | None = None,
    ) -> None:
        self.name = listening.engine
        self._listening = listening
        self._settings = settings
        self._preload = tuple(preload)
        self._credentials = dict(credentials or {})
        self._manager: Manager | None = None
        self._shipment: Shipment | None = None
        self._running: dict[int, _Running] = {}
        self._numbers: dict[TaskId, int] = {}
        self._events: list[EngineEvent] = []
        self._alone_since_s: float | None = None
        self._refusals, self._worked_s = 0, float("-inf")
        self._unsent = 0
        self._said: set[str] = set()
        self._room = Room()
        # workers by their addresses, and when each worker and host broke off in vain at which
        self._at: dict[str, QueueWorkerJoined] = {}
        self._in_vain: dict[str, dict[str, float]] = {}

    def start(self) -> None:
        """Listen for workers; those of an earlier run of this process are there at once."""
        self._manager = managers.lease(self._settings, self._listening)
        self._shipment = Shipment(self._manager, self._preload, self._settings, self._credentials)
        self._manager.events()
        for one in self._manager.joined.values():
            self._joined(one, warm=True)
        self._alone_since_s = None if self._manager.joined else time.monotonic()

    def submit(self, task: Task) -> None:
        """Queue `task`."""
        manager = self._open()
        assert self._shipment is not None
        folder, limit_mb = manager.folder / task.id, self._limit_mb(task.resources.memory_mb)
        try:
            folder.mkdir(mode=0o700)
            inputs = self._shipment.pack(task, folder, limit_mb)
        except OSError as error:
            raise warm.scratch_unusable(self._settings.scratch_dir, error) from None
        frames = QueueFile(folder / "frames", "frames", watch=True, failure_only=True)
        queued = QueueTask(
            command(task.environment),
            inputs,
            (frames,),
            cores=task.resources.cores,
            memory_mb=self._given_mb(task),
            disk_mb=task.resources.disk_mb or self._disk_mb(task),
            category="hepscale",
        )
        number = manager.queue.submit(queued)
        self._running[number] = _Running(task, folder, queued, number)
        self._numbers[task.id] = number
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
            self._check_room()
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

    def _most_mb(self) -> int:
        return max((one.memory_mb for one in self._open().joined.values()), default=0)

    def _limit_mb(self, wanted_mb: int | None) -> int | None:
        """Return what a task may use: what the user says, as far as there is a worker with that."""
        most_mb = self._most_mb()
        if not most_mb or (wanted_mb and wanted_mb <= most_mb):
            return wanted_mb
        if wanted_mb:
            self._say(f"A chunk may use {most_mb} MB, not {wanted_mb}: no worker here has more.")
        return most_mb

    def _given_mb(self, task: Task) -> int:
        """Return the memory that a task asks for."""
        limit_mb = task.resources.memory_mb
        # as many as a worker has cores for, until more is known
        wanted_mb = task.expected_memory_mb or limit_mb or self._share(task, "memory_mb")
        return given_mb(wanted_mb, limit_mb, self._most_mb(), task.attempt)

    def _disk_mb(self, task: Task) -> int:
        """Return the disk that a task asks for, which is a limit to some libraries."""
        # half: what is unpacked and kept for all is taken from what is there
        return max(self._share(task, "disk_mb") // 2, 1)

    def _share(self, task: Task, what: str) -> int:
        """Return what of something a worker has for the cores of a task; of the smallest one."""
        shares = [
            getattr(one, what) * task.resources.cores // one.cores
            for one in self._open().joined.values()
            if getattr(one, what) and one.cores
        ]
        return min(shares, default=1)

    def _open(self) -> Manager:
        if self._manager is None:
            raise EngineError("The engine was closed.", fix="make a new executor")
        return self._manager

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
            if not running.begun:
                self._broke_off(running.worker)
            return TaskEnded(task_id, "lost", f"its worker {running.worker} vanished".strip())
        _, told, line = ended.output.rpartition(f"\n{ENDED}")
        if ended.status == "done" and ended.exit_code in (0, FETCH) and told:
            said = json.loads(line.partition("\n")[0])
            self._refusals, self._worked_s = 0, time.monotonic()
            self._in_vain.clear()
            usage = Usage(said["wall_s"], said["cpu_s"], said["memory_mb"])
            inside = interposer.interposed(said, said)
            for text in interposer.notices(said["interposer"]):
                self._say(text, lasting=True)
            return TaskEnded(
                task_id, said["status"], said["detail"], usage, said["output_tail"], inside
            )
        reason = f"{ended.status}, exit code {ended.exit_code}"
        if ended.exit_code == REFUSED and ended.output.strip():
            told_why = warm.told_by_stage0(ended.output)
            reason = told_why[0] if told_why else ended.output.strip().splitlines()[-1]
        if not running.frames.offset:
            self._refused(ended, reason)
            return TaskEnded(task_id, "lost", reason, output_tail=ended.output[-4096:])
        # the worker is there, but its forkserver is not
        return TaskEnded(task_id, "died", reason, output_tail=ended.output[-4096:])

    def _broke_off(self, worker: str) -> None:
        """Take note of a worker that vanished before its task had begun; raise if all do."""
        now, host = time.monotonic(), worker.partition(":")[0]
        one = self._at.get(worker)
        visits = self._in_vain.setdefault(one.worker_id if one else worker, {})
        to_host = self._in_vain.setdefault(host, {})
        for known in (visits, to_host):
            known.setdefault(worker, now)
        lasts = now - min(to_host.values()) >= _VISITED_S
        if len(visits) < _MOST_VISITS and not (lasts and len(to_host) >= _MOST_VISITS_TO_HOST):
            return
        disk = f"{one.disk_mb} MB" if one else "unknown size"
        if any(running.begun for running in self._running.values()):
            self._say(
                f"A worker at {host} breaks off whenever it is sent what a task needs: "
                f"perhaps its disk, of {disk}, is full."
            )
            return
        raise EngineError(
            "Workers break off whenever they are sent what a task needs.",
            items=[f"{host}: a disk of {disk}"],
            cause="their disk is full, or something between them and this process cuts them off",
            fix="Workers(..., workdir=<a folder with room>); df -h there shows what is free",
        )

    def _refused(self, ended: QueueEnded, reason: str) -> None:
        """Take note of a worker that could not run a task; raise if none can."""
        self._refusals += 1
        if self._refusals < max(_MOST_REFUSALS, 2 * len(self._open().joined)):
            return
        where = f"{ended.host or ended.worker}: " if ended.host or ended.worker else ""
        if time.monotonic() - self._worked_s < _REFUSED_S:
            # others can: one that fails at once comes for the next task many times a second
            self._say(f"{where}a worker cannot run tasks: {reason}.")
            return
        told = warm.told_by_stage0(ended.output)
        if told is not None:
            fact, items, cause, fix = told
            kind = EngineError if ended.exit_code == REFUSED else PackError
            raise kind(fact, items=[f"{where}{one}" for one in items], cause=cause, fix=fix)
        lines = [line for line in ended.output.splitlines() if line.strip()][-3:]
        raise EngineError(
            "Workers cannot run the tasks.",
            items=[f"{where}{line}" for line in lines or [reason]],
            cause="what the workers miss, or another version of HepScale or Python there",
            fix='HepScaleExecutor(environment="packed"), which sends them all that they need',
        )

    def _hear(self) -> None:
        manager = self._open()
        alone = self._alone_since_s is not None
        events = manager.events()
        for event in events:
            if isinstance(event, QueueWorkerJoined):
                self._alone_since_s = None
                self._joined(event)
            elif isinstance(event, QueueWorkerLeft):
                self._events.append(WorkerLost(event.worker_id, event.reason))
                if not manager.joined:
                    self._alone_since_s = time.monotonic()
            elif isinstance(event, QueueWorkerRefused):
                where = event.worker.partition(":")[0]
                self._say(f"A worker at {where} was refused: {event.reason}.")
            elif isinstance(event, QueueTaskPlaced) and event.id in self._running:
                running = self._running[event.id]
                running.worker = event.worker
                if (at := self._at.get(event.worker)) is not None:
                    self._events.append(TaskPlaced(running.task.id, at.worker_id))
        changed = any(isinstance(event, QueueWorkerJoined | QueueWorkerLeft) for event in events)
        if changed:
            self._take_back_too_large()
        if (changed or alone) and manager.workers is not None:
            self._say(manager.workers.news())
        if self._alone_since_s is not None:
            self._say_alone(manager, time.monotonic() - self._alone_since_s)

    def _take_back_too_large(self) -> None:
        """Give tasks back that ask for more memory than any worker has that is left."""
        manager, most_mb = self._open(), self._most_mb()
        for running in list(self._running.values()):
            if most_mb and running.queued.memory_mb > most_mb and not running.worker:
                manager.queue.cancel(running.number)
                del self._running[running.number], self._numbers[running.task.id]
                running.remove()
                reason = "the worker that had the memory for it has gone"
                self._events.append(TaskEnded(running.task.id, "lost", reason))

    def _check_room(self) -> None:
        manager, running = self._open(), self._running.values()
        waiting = [] if any(one.worker for one in running) else [one.queued for one in running]
        own = manager.workers is not None
        self._say(self._room.check(manager.joined.values(), waiting, own=own))

    def _say(self, text: str, *, lasting: bool = False) -> None:
        # it comes again every few seconds
        if text and text not in self._said:
            self._said.add(text)
            self._events.append(Notice(text, lasting))

    def _say_alone(self, manager: Manager, alone_s: float) -> None:
        if alone_s >= _NO_WORKER_S:
            self._alone_since_s = None
            told = f"No worker has been there for {_NO_WORKER_S:.0f} s. "
            self._events.append(Notice(f"{told}To start one: {manager.advice}"))

    def _joined(self, one: QueueWorkerJoined, *, warm: bool = False) -> None:
        self._at[one.worker] = one
        host = one.worker.partition(":")[0]
        self._events.append(WorkerJoined(one.worker_id, one.cores, host, warm, one.memory_mb))
