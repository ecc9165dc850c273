"""TaskVine through ``ndcctools``: the queue of Work Queue's successor, with workers of its own."""

from __future__ import annotations

import math
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

from ndcctools import taskvine
from ndcctools.taskvine import cvine

from hepscale.errors import EngineError
from hepscale.executor.engines.queue import (
    Queue,
    QueueEnded,
    QueueEndStatus,
    QueueEvent,
    QueueFile,
    QueueOptions,
    QueueStats,
    QueueTask,
    QueueTaskPlaced,
    QueueWorkerLeft,
)
from hepscale.executor.engines.queue_log import NoticeLog, VineLog
from hepscale.executor.engines.queue_python import opened
from hepscale.executor.engines.queue_turns import NEVER_S, Turns

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["TaskVineQueue"]

_RUN = "taskvine"
_CANCELLED = 11 << 3
# as microseconds, it just fits into a C int
_LONG_S = 2147
# in microseconds: some hundred years from now
_NEVER_US = 2**53
_RESULTS: dict[int, QueueEndStatus] = {
    0: "done",
    1: "input_missing",
    2: "output_missing",
    # the exit code is good, only what was printed is cut
    4: "done",
    # the exit code is the number of the signal
    1 << 3: "done",
    2 << 3: "exhausted",
    3 << 3: "timeout",
    5 << 3: "lost",
    6 << 3: "lost",
    7 << 3: "timeout",
    # what came back does not fit on the disk here, or its worker went while it was sent
    9 << 3: "lost",
    13 << 3: "exhausted",
}


class TaskVineQueue(Queue):
    """A queue of TaskVine; its certificate is made for this queue only.

    TaskVine runs the task of a lost worker again by itself: hence a task may not start any more
    when it was sent to a worker, and comes back as lost when the loss is heard of.

    Parameters
    ----------
    options
        How it listens.

    Raises
    ------
    EngineError
        If the port is taken or the password file cannot be read.
    """

    worker = "vine_worker"

    def __init__(self, options: QueueOptions) -> None:
        self.library = f"TaskVine {taskvine.__version__}"
        self.ssl = options.ssl
        self._folder = options.folder
        self._manager: Any = None
        self.port, self._manager = opened(
            "TaskVine",
            options,
            lambda port, proof: taskvine.Manager(
                port,
                name=options.name or None,
                run_info_path=str(options.folder),
                run_info_template=_RUN,
                ssl=proof,
            ),
            taskvine.Manager.set_password_file,
        )
        # it would give up silent workers itself, which ends this process
        self._manager.set_keepalive_interval(options.keepalive_interval_s)
        self._manager.set_keepalive_timeout(NEVER_S)
        self._turns = Turns(
            cvine._cvine,
            "vine_wait_for_tag",
            "vine_manager_enable_process_shortcut",
            self._manager._taskvine,
            self.port,
            options,
        )
        self._manager.enable_peer_transfers()
        logs = options.folder / _RUN / "vine-logs"
        self._keep_no_statistics(logs / "nothing")
        self._log = VineLog(logs / "transactions")
        # it writes all that it does there, without a limit
        self._notices = NoticeLog(logs / "debug", _direct, most_bytes=2**24)
        self._cached: dict[Path, Any] = {}
        self._sent: dict[int, Any] = {}
        self._own: dict[int, list[Any]] = {}
        self._at: dict[int, str] = {}
        # their workers left: still to be told, and told but not yet out of TaskVine's hands
        self._lost: dict[int, str] = {}
        self._taken_back: set[int] = set()
        self._heard: list[QueueEvent] = []

    def submit(self, task: QueueTask) -> int:
        """Queue `task`."""
        made = taskvine.Task(task.command)
        own: list[Any] = []
        manager = self._open()
        for file in task.inputs:
            if file.cache:
                made.add_input(self._shared(file), file.remote)
                continue
            # TaskVine knows files by their content: of two equal ones that of a task which has
            # ended would be read
            own.append(manager.declare_buffer(file.local.read_bytes(), False, False))
            made.add_input(own[-1], file.remote)
        for file in task.outputs:
            own.append(manager.declare_file(str(file.local), cache=False, peer_transfer=False))
            made.add_output(own[-1], file.remote, watch=file.watch, failure_only=file.failure_only)
        for name, value in task.environment:
            made.set_env_var(name, value)
        made.set_cores(max(task.cores, 1))
        made.set_memory(max(task.memory_mb, 1))
        made.set_disk(max(task.disk_mb, 1))
        made.set_gpus(0)
        made.set_priority(task.priority)
        if task.wall_s:
            made.set_time_max(math.ceil(task.wall_s))
        if task.category:
            made.set_category(task.category)
        made.set_retries(1)
        made.set_max_forsaken(0)
        number = int(self._open().submit(made))
        self._sent[number], self._own[number] = made, own
        return number

    def wait(self, timeout_s: float) -> QueueEnded | None:
        """Return a task that has ended."""
        end, news = time.monotonic() + timeout_s, False
        while True:
            if self._lost:
                return self._given_back()
            self._turns.take()
            task = self._open().wait(0)
            self._listen()
            ended = self._ended(task) if task is not None else None
            rest_s = end - time.monotonic()
            if ended is not None or ((news or self._heard or rest_s <= 0) and not self._lost):
                return ended
            news = not self._lost and self._turns.news(rest_s)

    def cancel(self, task_id: int) -> bool:
        """Take a task back and kill its processes."""
        self._lost.pop(task_id, None)
        return bool(self._open().cancel_by_task_id(task_id))

    def events(self) -> list[QueueEvent]:
        """Return what was heard of workers and places since the last call."""
        self._listen()
        heard, self._heard = self._heard, []
        return heard

    def stats(self) -> QueueStats:
        """Return the counters."""
        stats = cvine.vine_stats()
        # what its own property gives may be 5 s old
        cvine.vine_get_stats(self._open()._taskvine, stats)
        return QueueStats.of(stats)

    def close(self) -> None:
        """Send all workers away and stop listening."""
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.workers_shutdown(0)
            manager.__exit__(None, None, None)
            self._turns.close()
            self._log.close()
            self._notices.close()

    def _keep_no_statistics(self, log: Path) -> None:
        """Have it write none: to do so while it reads watched files ends this process."""
        # at the end of each turn it writes them all the same
        log.symlink_to(os.devnull)
        cvine.vine_enable_perf_log(self._manager._taskvine, log.name)
        self._manager.tune("perf-log-interval", _LONG_S)

    def _given_back(self) -> QueueEnded:
        """Return a task whose worker has left."""
        number, worker = self._lost.popitem()
        self._taken_back.add(number)
        self._open().cancel_by_task_id(number)
        return QueueEnded(id=number, status="lost", exit_code=-1, worker=worker)

    def _ended(self, task: Any) -> QueueEnded | None:
        number = int(task.id)
        result = int(cvine.vine_task_get_result(task._task))
        worker = self._at.pop(number, "")
        self._lost.pop(number, None)
        self._sent.pop(number, None)
        for file in self._own.pop(number, ()):
            self._open().undeclare_file(file)
        if result == _CANCELLED or number in self._taken_back:
            self._taken_back.discard(number)
            return None
        return QueueEnded(
            id=number,
            status=_RESULTS.get(result, "failed"),
            exit_code=task.exit_code,
            output=task.std_output or "",
            host=task.hostname or "",
            worker=task.addrport or worker,
            sent_bytes=int(task.get_metric("bytes_sent")),
            received_bytes=int(task.get_metric("bytes_received")),
        )

    def _shared(self, file: QueueFile) -> Any:
        """Return what TaskVine knows a cached input by."""
        if file.local not in self._cached:
            # that of an earlier run with this content would be read
            kept = _kept(file.local, self._folder / f"kept-{len(self._cached)}")
            # a worker may outlive this manager
            self._cached[file.local] = self._open().declare_file(
                str(kept), cache="worker", peer_transfer=file.shared
            )
        return self._cached[file.local]

    def _listen(self) -> None:
        """Take in what the logs say."""
        events = [*self._log.read(), *self._notices.read()]
        for event in events:
            if isinstance(event, QueueTaskPlaced):
                self._at[event.id] = event.worker
                if event.id in self._sent:
                    self._sent.pop(event.id).set_time_start(_NEVER_US)
            elif isinstance(event, QueueWorkerLeft):
                gone = [number for number, at in self._at.items() if at == event.worker]
                self._lost |= {number: self._at.pop(number) for number in gone}
        self._heard += events

    def _open(self) -> Any:
        if self._manager is None:
            raise EngineError("The queue was closed.", fix="make a new executor")
        return self._manager


def _direct(complaints: Path | None) -> None:
    # after the last queue there is nothing to complain about
    if complaints is not None:
        cvine.vine_enable_debug_log(str(complaints))


def _kept(source: Path, target: Path) -> Path:
    """Give a file or folder a second name, which stays; where that cannot be, a copy."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy(source, target)

    if source.is_dir():
        shutil.copytree(source, target, copy_function=link)
    else:
        link(os.path.realpath(source), str(target))
    return target
