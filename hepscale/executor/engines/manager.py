"""Managers of Work Queue or TaskVine: each has a port, a password, workers, and outlives a run."""

from __future__ import annotations

import atexit
import compileall
import logging
import os
import py_compile
import secrets
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hepscale.errors import EngineError
from hepscale.executor.engines import warm
from hepscale.executor.engines.queue import (
    Queue,
    QueueOptions,
    QueueWorkerJoined,
    QueueWorkerLeft,
)
from hepscale.executor.engines.queue_open import library_protocol, open_queue
from hepscale.worker import scratch
from hepscale.workers.version import PROGRAMS

if TYPE_CHECKING:
    from hepscale.config import Settings
    from hepscale.executor.engines.queue import QueueEvent
    from hepscale.workers.api import Workers

__all__ = ["Listening", "Manager", "give_back", "lease", "shutdown"]

log = logging.getLogger(__name__)

_WORKER = Path(__file__).parents[2] / "worker"
# a worker that says nothing for so long, and does not answer, is given up
_SILENT_S, _ANSWER_S = 10, 20


@dataclass(frozen=True)
class Listening:
    """Where workers find their manager, and who starts them.

    Attributes
    ----------
    engine
        "workqueue" or "taskvine".
    name
        Advertised to the catalog server; empty: nothing is.
    port
        First and last that may be taken; None: any.
    password_file
        What workers have to know; None: a new one.
    workers
        Are started and stopped with the manager; None: somebody else does.
    """

    engine: str = "workqueue"
    name: str = ""
    port: tuple[int, int] | None = None
    password_file: Path | None = None
    workers: Workers | None = None


@dataclass(eq=False)
class Manager:
    """An open queue.

    Attributes
    ----------
    queue
        Is called from one thread at a time.
    folder
        For what tasks read and write; goes with the manager.
    password
        The file that workers need.
    package
        A copy of what runs on workers.
    joined
        The workers that are there, by their ids.
    """

    queue: Queue
    folder: Path
    password: Path
    package: Path
    lock: int
    workers: Workers | None
    in_use: bool = False
    joined: dict[str, QueueWorkerJoined] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Host and port for workers elsewhere."""
        return f"{os.uname().nodename}:{self.queue.port}"

    @property
    def advice(self) -> str:
        """The command that starts a worker for it."""
        ssl = " --ssl" if self.queue.ssl else ""
        engine = "" if self.queue.worker == PROGRAMS["workqueue"] else " --engine taskvine"
        return f"hepscale workers start{engine}{ssl} --password {self.password} {self.address}"

    def events(self) -> list[QueueEvent]:
        """Return what was heard since the last call."""
        events = self.queue.events()
        for event in events:
            if isinstance(event, QueueWorkerJoined):
                self.joined[event.worker_id] = event
            elif isinstance(event, QueueWorkerLeft):
                self.joined.pop(event.worker_id, None)
        return events

    def end(self) -> None:
        """Send the workers away, and remove what was made for them."""
        try:
            if self.workers is not None:
                self.workers.stop()
        finally:
            self.queue.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self.lock)


_guard = threading.Lock()
_pool: dict[tuple[object, ...], Manager] = {}


def lease(settings: Settings, listening: Listening) -> Manager:
    """Return a manager that listens as wanted, the one of an earlier run if it is free.

    Raises
    ------
    EngineError
        No library of Work Queue can be used, the port is taken, or workers cannot be started.
    ConfigError, RunDirectoryError
        A file or folder cannot be used.
    """
    key = (os.getpid(), listening, settings.scratch_dir)
    with _guard:
        manager = _pool.get(key)
        if manager is not None and manager.in_use:
            if listening.port is not None or listening.workers is not None:
                raise EngineError(
                    "Another run of this process uses this manager of Work Queue.",
                    items=[f"port {manager.queue.port}"],
                    cause="two threads run with the same port or the same workers",
                    fix="wait for the other run, or give each a port and workers of its own",
                )
            manager = _open(settings, listening)
        elif manager is None:
            manager = _pool[key] = _open(settings, listening)
        elif manager.workers is not None and not manager.workers.alive():
            # they were idle for too long, or stopped
            manager.workers.stop()
            _start_workers(manager, listening, settings)
        manager.in_use = True
        return manager


def give_back(manager: Manager) -> None:
    """Say that a run does not use it any more; it and its workers wait for the next one."""
    with _guard:
        manager.in_use = False
        if manager not in _pool.values():
            manager.end()


def shutdown(*, idle_only: bool = False) -> None:
    """End the managers of this process with their workers; with `idle_only` the unused ones."""
    with _guard:
        for key, manager in list(_pool.items()):
            # after a fork of this process they belong to its parent
            if key[0] == os.getpid() and not (idle_only and manager.in_use):
                del _pool[key]
                manager.end()


atexit.register(shutdown)


def _open(settings: Settings, listening: Listening) -> Manager:
    parent = str(settings.scratch_dir)
    for removed in scratch.sweep(parent):
        log.info("removed %s, which an earlier run left behind", removed)
    try:
        made, lock = scratch.make(parent)
    except OSError as error:
        raise warm.scratch_unusable(settings.scratch_dir, error) from None
    folder = Path(made)
    try:
        password = listening.password_file or _new_password(folder)
        package = folder / "hepscale"
        shutil.copytree(_WORKER, package, ignore=shutil.ignore_patterns("__pycache__"))
        # each task imports it from a folder of its own, which goes with it
        compileall.compile_dir(
            package, quiet=1, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
        (folder / "log").mkdir()
        options = QueueOptions(
            folder / "log",
            listening.port or 0,
            password,
            listening.name,
            keepalive_interval_s=_SILENT_S,
            keepalive_timeout_s=_ANSWER_S,
        )
        queue = open_queue(options, settings, listening.engine)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        raise
    manager = Manager(queue, folder, password, package, lock, listening.workers)
    try:
        if listening.workers is not None:
            _start_workers(manager, listening, settings)
    except BaseException:
        manager.end()
        raise
    return manager


def _start_workers(manager: Manager, listening: Listening, settings: Settings) -> None:
    workers = listening.workers
    assert workers is not None
    host = "127.0.0.1" if workers.batch == "local" else os.uname().nodename
    workers.start(
        f"{host}:{manager.queue.port}",
        manager.password,
        ssl=manager.queue.ssl,
        protocol=library_protocol(settings, listening.engine),
        program=manager.queue.worker,
        settings=settings,
    )


def _new_password(folder: Path) -> Path:
    path = folder / "password"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(secrets.token_hex(32))
    return path
