"""Work Queue through ``ndcctools``, as conda-forge packages it: the same queue, with TLS."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from ndcctools import cwork_queue, work_queue

from hepscale.errors import EngineError
from hepscale.executor.engines.queue import (
    MICRO,
    RESULTS,
    Queue,
    QueueEnded,
    QueueEvent,
    QueueFile,
    QueueOptions,
    QueueStats,
    QueueTask,
)
from hepscale.executor.engines.queue_log import NoticeLog, TransactionLog
from hepscale.executor.engines.queue_python import opened
from hepscale.executor.engines.queue_turns import NEVER_S, Turns

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["NdcctoolsQueue"]


class NdcctoolsQueue(Queue):
    """A queue of ``ndcctools``; its certificate is made for this queue only.

    Parameters
    ----------
    options
        How it listens.

    Raises
    ------
    EngineError
        If the port is taken or the password file cannot be read.
    """

    worker = "work_queue_worker"

    def __init__(self, options: QueueOptions) -> None:
        self.library = f"ndcctools {work_queue.__version__}"
        self.ssl = options.ssl
        log = str(options.folder / "transactions.log")
        self._queue: Any = None
        self.port, self._queue = opened(
            "Work Queue",
            options,
            lambda port, proof: work_queue.WorkQueue(
                port, name=options.name or None, transactions_log=log, ssl=proof
            ),
            work_queue.WorkQueue.specify_password_file,
        )
        # the library may still look at them
        self._cancelled: list[Any] = []
        # the library would give up silent workers itself, which ends this process
        self._open().specify_keepalive_interval(options.keepalive_interval_s)
        self._open().specify_keepalive_timeout(NEVER_S)
        self._turns = Turns(
            cwork_queue._cwork_queue,
            "work_queue_wait_for_tag",
            "work_queue_enable_process_module",
            self._open()._work_queue,
            self.port,
            options,
        )
        self._log = TransactionLog(options.folder / "transactions.log")
        self._notices = NoticeLog(options.folder / "notices.log", self._direct)
        self._heard: list[QueueEvent] = []

    def submit(self, task: QueueTask) -> int:
        """Queue `task`."""
        made = work_queue.Task(task.command)
        for files, kind in (
            (task.inputs, work_queue.WORK_QUEUE_INPUT),
            (task.outputs, work_queue.WORK_QUEUE_OUTPUT),
        ):
            for file in files:
                made.specify_file(str(file.local), file.remote, kind, _flags(file))
        for name, value in task.environment:
            made.specify_environment_variable(name, value)
        made.specify_cores(max(task.cores, 1))
        made.specify_memory(max(task.memory_mb, 1))
        made.specify_disk(max(task.disk_mb, 1))
        made.specify_gpus(0)
        made.specify_priority(task.priority)
        if task.wall_s:
            made.specify_running_time_max(math.ceil(task.wall_s))
        if task.category:
            made.specify_category(task.category)
        # a task is given up when it was tried more often than max_retries: as if it had been once
        made.specify_max_retries(1)
        made._task.try_count = 1
        return int(self._open().submit(made))

    def wait(self, timeout_s: float) -> QueueEnded | None:
        """Return a task that has ended."""
        end, news = time.monotonic() + timeout_s, False
        while (task := self._served()) is None:
            rest_s = end - time.monotonic()
            if news or rest_s <= 0:
                return None
            news = self._turns.news(rest_s)
        return QueueEnded(
            id=task.id,
            status=RESULTS.get(task.result, "failed"),
            exit_code=task.return_status,
            output=task.output or "",
            host=task.hostname or "",
            worker=task.host or "",
            wall_s=task.cmd_execution_time * MICRO,
            sent_bytes=task.total_bytes_sent,
            received_bytes=task.total_bytes_received,
        )

    def cancel(self, task_id: int) -> bool:
        """Take a task back and kill its processes."""
        task = self._open().cancel_by_taskid(task_id)
        if task is not None:
            self._cancelled.append(task)
        return task is not None

    def events(self) -> list[QueueEvent]:
        """Return what was heard of workers and places since the last call."""
        heard, self._heard = self._heard, []
        return [*heard, *self._log.read(), *self._notices.read()]

    def stats(self) -> QueueStats:
        """Return the counters."""
        return QueueStats.of(self._open().stats)

    def close(self) -> None:
        """Send all workers away and stop listening."""
        queue, self._queue = self._queue, None
        if queue is not None:
            # it releases the workers; to shut them down ends this process ("cctools bug", 8.0)
            queue.__exit__(None, None, None)
            self._turns.close()
            self._log.close()
            self._notices.close()

    def _served(self) -> Any:
        queue = self._open()
        self._turns.take()
        self._heard += self._log.read()
        # with none to return it would serve workers too, and hold the interpreter's lock meanwhile
        return queue.wait(1) if self._log.ended else None

    def _direct(self, complaints: Path | None) -> None:
        work_queue.cctools_debug_config_file(str(complaints) if complaints else None)

    def _open(self) -> Any:
        if self._queue is None:
            raise EngineError("The queue was closed.", fix="make a new executor")
        return self._queue


def _flags(file: QueueFile) -> int:
    flags = (
        (file.cache, work_queue.WORK_QUEUE_CACHE),
        (file.watch, work_queue.WORK_QUEUE_WATCH),
        (file.failure_only, work_queue.WORK_QUEUE_FAILURE_ONLY),
    )
    return sum(int(flag) for given, flag in flags if given)
