"""Work Queue through its C library, as Debian packages it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from hepscale.errors import EngineError
from hepscale.executor.engines import queue_build
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
from hepscale.executor.engines.queue_listen import listen
from hepscale.executor.engines.queue_log import NoticeLog, TransactionLog

if TYPE_CHECKING:
    from pathlib import Path

    from hepscale.config import Settings

__all__ = ["CffiQueue"]

_INPUT, _OUTPUT = 0, 1
_CACHE, _WATCH, _FAILURE_ONLY = 1, 16, 32


class CffiQueue(Queue):
    """A queue of the C library.

    Parameters
    ----------
    options
        How it listens.
    settings
        Where the compiled binding is kept.

    Raises
    ------
    EngineError
        If the library is not installed or cannot be compiled against, or if the port is taken.
    """

    library = "C library"
    worker = "work_queue_worker"
    # that of Debian was made without
    ssl = False

    def __init__(self, options: QueueOptions, settings: Settings) -> None:
        module = queue_build.load(settings)
        self._ffi: Any = module.ffi
        self._lib: Any = module.lib
        self._queue: Any = None
        self.port = listen(options.port, self._create)
        self._timer = self._lib.hs_timer_create()
        try:
            self._configure(options)
        except BaseException:
            self._release()
            raise
        self._log = TransactionLog(options.folder / "transactions.log")
        self._notices = NoticeLog(options.folder / "notices.log", self._direct)

    def submit(self, task: QueueTask) -> int:
        """Queue `task`."""
        lib = self._lib
        made = lib.work_queue_task_create(_c(task.command))
        for files, kind in ((task.inputs, _INPUT), (task.outputs, _OUTPUT)):
            for file in files:
                local, remote = _c(str(file.local)), _c(file.remote)
                lib.work_queue_task_specify_file(made, local, remote, kind, _flags(file))
        for name, value in task.environment:
            lib.work_queue_task_specify_environment_variable(made, _c(name), _c(value))
        # what is 0 would be all that the worker had when it joined, and a worker that has less by
        # now gives the task up
        lib.work_queue_task_specify_cores(made, max(task.cores, 1))
        lib.work_queue_task_specify_memory(made, max(task.memory_mb, 1))
        lib.work_queue_task_specify_disk(made, max(task.disk_mb, 1))
        lib.work_queue_task_specify_gpus(made, 0)
        lib.work_queue_task_specify_priority(made, task.priority)
        if task.wall_s:
            lib.work_queue_task_specify_running_time_max(made, math.ceil(task.wall_s))
        if task.category:
            lib.work_queue_task_specify_category(made, _c(task.category))
        # a task is given up when it was tried more often than max_retries: as if it had been once
        lib.work_queue_task_specify_max_retries(made, 1)
        made.try_count = 1
        return int(lib.work_queue_submit(self._open(), made))

    def wait(self, timeout_s: float) -> QueueEnded | None:
        """Return a task that has ended."""
        task = self._lib.hs_wait(self._open(), self._timer, max(timeout_s, 0.0))
        if not task:
            return None
        ended = self._ended(task)
        self._lib.work_queue_task_delete(task)
        return ended

    def cancel(self, task_id: int) -> bool:
        """Take a task back and kill its processes."""
        task = self._lib.work_queue_cancel_by_taskid(self._open(), task_id)
        if task:
            self._lib.work_queue_task_delete(task)
        return bool(task)

    def events(self) -> list[QueueEvent]:
        """Return what was heard of workers and places since the last call."""
        return [*self._log.read(), *self._notices.read()]

    def stats(self) -> QueueStats:
        """Return the counters."""
        stats = self._ffi.new("struct work_queue_stats *")
        self._lib.work_queue_get_stats(self._open(), stats)
        return QueueStats.of(stats)

    def close(self) -> None:
        """Send all workers away and stop listening."""
        if self._queue is not None:
            self._lib.work_queue_shut_down_workers(self._queue, 0)
            self._release()
            self._log.close()
            self._notices.close()

    def _create(self, port: int) -> bool:
        queue = self._lib.work_queue_create(port)
        if queue:
            self._queue = queue
        return bool(queue)

    def _configure(self, options: QueueOptions) -> None:
        lib, queue = self._lib, self._queue
        log = options.folder / "transactions.log"
        if not lib.work_queue_specify_transactions_log(queue, _c(str(log))):
            raise EngineError(
                "The folder of this run cannot be written.",
                items=[str(log)],
                cause="the disk is full",
            )
        if options.password_file is not None and not lib.work_queue_specify_password_file(
            queue, _c(str(options.password_file))
        ):
            raise EngineError(
                "The password file for workers cannot be read.", items=[str(options.password_file)]
            )
        if options.catalog:
            lib.work_queue_specify_catalog_servers(queue, _c(options.catalog))
        if options.name:
            lib.work_queue_specify_name(queue, _c(options.name))
        lib.work_queue_specify_keepalive_interval(queue, options.keepalive_interval_s)
        lib.work_queue_specify_keepalive_timeout(queue, options.keepalive_timeout_s)

    def _ended(self, task: Any) -> QueueEnded:
        def text(pointer: Any) -> str:
            return self._ffi.string(pointer).decode(errors="replace") if pointer else ""

        return QueueEnded(
            id=task.taskid,
            status=RESULTS.get(task.result, "failed"),
            exit_code=task.return_status,
            output=text(task.output),
            host=text(task.hostname),
            worker=text(task.host),
            wall_s=task.time_workers_execute_last * MICRO,
            sent_bytes=task.bytes_sent,
            received_bytes=task.bytes_received,
        )

    def _open(self) -> Any:
        if self._queue is None:
            raise EngineError("The queue was closed.", fix="make a new executor")
        return self._queue

    def _release(self) -> None:
        queue, self._queue = self._queue, None
        self._lib.work_queue_delete(queue)
        self._lib.hs_timer_delete(self._timer)

    def _direct(self, complaints: Path | None) -> None:
        self._lib.debug_config_file_e(_c(str(complaints)) if complaints else self._ffi.NULL)


def _flags(file: QueueFile) -> int:
    flags = ((file.cache, _CACHE), (file.watch, _WATCH), (file.failure_only, _FAILURE_ONLY))
    return sum(flag for given, flag in flags if given)


def _c(text: str) -> bytes:
    return text.encode()
