"""Queues of Work Queue, and real workers, for tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hepscale.config import load_settings
from hepscale.executor.engines import queue_build
from hepscale.executor.engines.queue import (
    Queue,
    QueueEnded,
    QueueEvent,
    QueueOptions,
    QueueWorkerJoined,
)
from hepscale.executor.engines.queue_cffi import CffiQueue
from hepscale.executor.engines.queue_open import open_queue

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_S = 60.0

needs_worker = pytest.mark.skipif(
    shutil.which("work_queue_worker") is None or not queue_build.HEADER.exists(),
    reason="apt-get install coop-computing-tools coop-computing-tools-dev",
)


class Site:
    """A queue, what was heard from it, and its workers; everything ends with it."""

    def __init__(self, binding: str, folder: Path) -> None:
        self.binding = binding
        self.folder = folder
        self.queue: Queue
        self.ended: list[QueueEnded] = []
        self.heard: list[QueueEvent] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        self.options: QueueOptions

    def open(self, **options: object) -> Queue:
        (self.folder / "queue").mkdir(exist_ok=True)
        self.options = QueueOptions(self.folder / "queue", **options)  # type: ignore[arg-type]
        if self.binding == "cffi":
            self.queue = CffiQueue(self.options, load_settings())
        else:
            engine = "taskvine" if self.binding == "taskvine" else "workqueue"
            self.queue = open_queue(self.options, load_settings(), engine)
        return self.queue

    def worker(self, *options: str, joins: bool = True) -> subprocess.Popen[bytes]:
        """Start a worker of one core, and wait until it has joined."""
        before = len(self.of(QueueWorkerJoined))
        secure = ["--ssl"] if self.queue.ssl else []
        place = ["127.0.0.1", str(self.queue.port)]
        # that of the library, whatever else comes first on PATH
        folder = queue_build.HEADER.parents[2] / "bin"
        program = str(folder / self.queue.worker) if self.binding == "cffi" else self.queue.worker
        command = [program, "--single-shot", "--cores", "1", "-t", "60"]
        with open(self.folder / f"worker-{len(self.workers)}.log", "wb") as said:
            process = subprocess.Popen(
                [*command, *secure, *options, *place],
                stdout=said,
                stderr=said,
                env={**os.environ, "TMPDIR": str(self.folder)},
            )
        self.workers.append(process)
        if joins:
            self.until(lambda: len(self.of(QueueWorkerJoined)) > before)
        return process

    def said(self, worker: subprocess.Popen[bytes]) -> str:
        return (self.folder / f"worker-{self.workers.index(worker)}.log").read_text()

    def workspace(self, worker: subprocess.Popen[bytes]) -> Path:
        return self.folder / f"worker-{os.getuid()}-{worker.pid}"

    def of(self, kind: type) -> list[QueueEvent]:
        return [event for event in self.heard if isinstance(event, kind)]

    def until(self, holds: Callable[[], object]) -> None:
        """Serve the queue until `holds`."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline, (self.heard, self.ended)
            ended = self.queue.wait(0.2)
            if ended is not None:
                self.ended.append(ended)
            self.heard += self.queue.events()

    def result(self, task_id: int) -> QueueEnded:
        """Serve the queue until the task has ended."""
        self.until(lambda: any(ended.id == task_id for ended in self.ended))
        return next(ended for ended in self.ended if ended.id == task_id)

    def close(self) -> None:
        self.queue.close()
        for process in self.workers:
            process.send_signal(signal.SIGCONT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def has_ndcctools() -> bool:
    """Whether its library is used."""
    return importlib.util.find_spec("ndcctools") is not None


def where_installed(*names: str) -> list[object]:
    """Parameters for what needs ndcctools, skipped where it is not.

    No environment of pip's can have it: a run in which nothing may be skipped is without.
    """
    absent = not has_ndcctools()
    if absent and os.environ.get("HEPSCALE_TEST_STRICT"):
        return []
    skip = pytest.mark.skipif(absent, reason="conda install -c conda-forge ndcctools")
    return [pytest.param(name, marks=skip) for name in names]


def bindings() -> list[object]:
    """All bindings; what is not installed is skipped."""
    cffi = pytest.param("cffi", marks=needs_worker)
    return [cffi, *where_installed("ndcctools", "taskvine")]


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
