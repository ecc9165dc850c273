"""Runs on real workers of Work Queue, to which something happens meanwhile."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import packed
import pytest
import support

import hepscale
from hepscale import Workers
from hepscale.executor.engines import manager as managers
from hepscale.workers.version import PROGRAMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


# the engine of the test that runs
engine = "workqueue"


class Crew:
    """What runs are asked for, and which of their items have run where."""

    def __init__(self, folder: Path) -> None:
        self.notes = folder / "ran"
        self.notes.mkdir(exist_ok=True)

    def function(self, seconds: float = 0.1, act: Callable[[int], Any] | None = None) -> Any:
        """Return what a chunk runs: it takes its time, and notes its item when it is over."""
        notes = str(self.notes)

        def work(item: int) -> int:
            time.sleep(seconds)
            if act is not None:
                act(item)
            with open(f"{notes}/{item}", "a") as out:
                out.write(f"{os.getpid()}\n")
            return item

        return work

    def run(
        self,
        count: int = 60,
        seconds: float = 0.1,
        act: Callable[[int], Any] | None = None,
        **options: Any,
    ) -> None:
        """Run, and check that each item was counted exactly once."""
        if act is not None:
            packed.own(act)
        options = {"engine": engine, "retries": 3, **options}
        options.setdefault("workers", Workers(count=2))
        function = self.function(seconds, act)
        assert packed.calculate(function, range(count), **options) == [*range(count)]

    def times(self) -> dict[int, int]:
        """Return how often each item has run to its end."""
        return {int(path.name): len(path.read_text().splitlines()) for path in self.notes.iterdir()}

    def wait(self, items: int) -> None:
        """Wait until so many items have run."""
        support.wait_for(lambda: len(os.listdir(self.notes)) >= items)


def resumed(folder: str, engine: str) -> None:
    """Run what is left of 60 items, and print what is counted, for a process of its own."""
    packed.without_coffea(pytest.MonkeyPatch())
    options = {"engine": engine, "workers": Workers(count=2), "resume": True}
    try:
        print(json.dumps(packed.calculate(Crew(Path(folder)).function(), range(60), **options)))
    except hepscale.RunInterrupted as error:
        print(json.dumps(sorted(error.partial_output)))


@contextmanager
def meanwhile(act: Callable[[], Any]) -> Iterator[None]:
    """Run `act` in another thread, and raise what it raises."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(act)
        yield
        future.result()


def workers() -> list[int]:
    """Return the workers that run; not one that is only asked for its version."""
    if engine == "taskvine":
        return sorted(
            pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_vine(pid)
        )
    found = support.processes().items()
    return sorted(
        pid
        for pid, text in found
        if "work_queue_worker" in text.partition(" ")[0] and " --password " in text
    )


def _is_vine(pid: int) -> bool:
    """Whether it is a worker of TaskVine, which writes over its arguments and variables."""
    try:
        program, cwd = os.readlink(f"/proc/{pid}/exe"), os.readlink(f"/proc/{pid}/cwd")
        text = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False
    asked = cwd.startswith(f"{tempfile.gettempdir()}/hepscale-")
    return program.endswith(PROGRAMS[engine]) and "transfer" not in text and not asked


def members(worker: int) -> dict[int, str]:
    """Return the processes that live in the workspace of a worker, itself left out."""
    workspace = f"worker-{os.getuid()}-{worker}/"
    found = {}
    for pid, text in support.processes().items():
        where = ""
        with suppress(OSError):
            where = os.readlink(f"/proc/{pid}/cwd")
        if pid != worker and workspace in f"{text} {where}/":
            found[pid] = text
    return found


def busy_workers(count: int) -> list[int]:
    """Wait until so many workers run a chunk; return them."""
    end = time.monotonic() + support.PATIENCE_S
    # a forkserver and its child
    while len(busy := [pid for pid in workers() if len(forkservers(pid)) >= 2]) < count:
        assert time.monotonic() < end, busy
        time.sleep(0.02)
    return busy


def forkservers(worker: int) -> list[int]:
    """Return the forkservers of a worker and their children."""
    return [pid for pid, text in members(worker).items() if "settings.json" in text]


def begun_worker() -> int:
    """Wait until a worker prepares its first task; return it."""
    found: list[int] = support.wait_for(lambda: [pid for pid in workers() if members(pid)])
    return found[0]


def nothing_runs() -> None:
    """Wait until nothing runs that was started here, and nothing lies about."""
    end = time.monotonic() + support.PATIENCE_S
    while left := (support.processes(), support.scratch()):
        if not any(left):
            return
        assert time.monotonic() < end, left
        time.sleep(0.05)


def kill(worker: int) -> None:
    """Kill a worker; check that all that lived in its workspace ends too."""
    os.kill(worker, signal.SIGKILL)
    end = time.monotonic() + support.PATIENCE_S
    while left := members(worker):
        assert time.monotonic() < end, left
        time.sleep(0.02)


def manager() -> managers.Manager:
    """Return the manager of this process."""
    (found,) = managers._pool.values()
    return found


def more(count: int = 1, at: str = "", password: Path | None = None, **options: Any) -> Workers:
    """Start more workers for the manager of this process."""
    started = Workers(count=count, **options)
    queue = manager().queue
    started.start(
        at or f"127.0.0.1:{queue.port}",
        password or manager().password,
        ssl=queue.ssl,
        program=queue.worker,
    )
    return started


class Relay:
    """Stands between workers and the manager of this process, and may change what they say.

    What `each` makes for a connection may raise an `OSError`, which cuts it.
    """

    def __init__(self, each: Callable[[], Callable[[bytes], bytes]]) -> None:
        self._each = each
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def stop(self) -> None:
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for end in self._ends:
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                worker, _ = self._listener.accept()
                there = socket.create_connection(("127.0.0.1", manager().queue.port))
                self._ends += [worker, there]
                for way in ((worker, there, self._each()), (there, worker, bytes)):
                    self._threads.append(threading.Thread(target=_carry, args=way))
                    self._threads[-1].start()


def _carry(source: socket.socket, target: socket.socket, change: Callable[[bytes], bytes]) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(change(data))
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
