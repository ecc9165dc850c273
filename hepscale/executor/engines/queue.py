"""What both bindings to Work Queue give: records, and a queue of tasks with files."""

from __future__ import annotations

import errno
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from hepscale.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "Queue",
    "QueueEnded",
    "QueueEvent",
    "QueueFile",
    "QueueOptions",
    "QueueStats",
    "QueueTask",
    "QueueTaskPlaced",
    "QueueWorkerJoined",
    "QueueWorkerLeft",
    "TransactionLog",
    "listen",
]

QueueEndStatus: TypeAlias = Literal[
    "done", "lost", "input_missing", "output_missing", "exhausted", "timeout", "failed"
]

# how the C library names its results; each maps to the one word that an engine acts on
RESULTS: dict[int, QueueEndStatus] = {
    0: "done",
    1: "input_missing",
    2: "output_missing",
    # the exit code is good, only what was printed is cut
    4: "done",
    2 << 3: "exhausted",
    3 << 3: "timeout",
    5 << 3: "lost",
    6 << 3: "lost",
    7 << 3: "timeout",
    8 << 3: "exhausted",
}

_LEFT = {
    "IDLE_OUT": "it was idle for too long",
    "FAST_ABORT": "it was too slow",
    "FAILURE": "its connection was lost",
    "STATUS_WORKER": "it only asked for the status",
    "EXPLICIT": "it was sent away",
}
_RANDOM_TRIES = 20


@dataclass(frozen=True, slots=True)
class QueueFile:
    """A file of a task.

    Attributes
    ----------
    local, remote
        Its path here, and its path relative to the task's folder on the worker.
    cache
        An input that stays on the worker for later tasks: it is sent once per worker.
    watch
        An output that is carried back while it grows.
    failure_only
        An output that is not fetched (again) at the end of a task whose exit code is 0.
    """

    local: Path
    remote: str
    cache: bool = False
    watch: bool = False
    failure_only: bool = False


@dataclass(frozen=True, slots=True)
class QueueTask:
    """A command with its files; resources of 0 mean that nothing is asked for."""

    command: str
    inputs: tuple[QueueFile, ...] = ()
    outputs: tuple[QueueFile, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    cores: int = 0
    memory_mb: int = 0
    disk_mb: int = 0
    wall_s: float = 0.0
    category: str = ""
    priority: float = 0.0


@dataclass(frozen=True, slots=True)
class QueueEnded:
    """A task that has come back.

    ``status``: "done" (it ran; see `exit_code`, which is also the number of the signal that ended
    it), "lost" (its worker vanished or gave it up; it is not run again), "input_missing",
    "output_missing", "exhausted" (over its disk), "timeout", "failed" (anything else).
    ``worker`` is the worker's address and port, "" where it is not known.
    """

    id: int
    status: QueueEndStatus
    exit_code: int
    output: str = ""
    host: str = ""
    worker: str = ""
    wall_s: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Counters of a queue; ``_joined`` and so on count from its creation."""

    workers_connected: int
    workers_joined: int
    workers_removed: int
    workers_busy: int
    tasks_waiting: int
    tasks_running: int
    tasks_dispatched: int
    sent_bytes: int
    received_bytes: int
    cores: int
    polling_s: float
    busy_s: float


@dataclass(frozen=True, slots=True)
class QueueWorkerJoined:
    """A worker is ready, with these resources."""

    worker: str
    worker_id: str
    cores: int
    memory_mb: int
    disk_mb: int


@dataclass(frozen=True, slots=True)
class QueueWorkerLeft:
    """A worker is gone; `reason` is one phrase."""

    worker: str
    worker_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class QueueTaskPlaced:
    """A task was handed to a worker."""

    id: int
    worker: str


QueueEvent: TypeAlias = QueueWorkerJoined | QueueWorkerLeft | QueueTaskPlaced


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """How a queue listens.

    Attributes
    ----------
    folder
        A folder of its own, in which the library's log is written.
    port
        A port, the first and last of a range, or 0 for any free one.
    password_file
        Workers without this password are refused; None admits everybody.
    name
        The project name that is advertised to the catalog server; "" advertises nothing.
    catalog
        ``host:port`` of the catalog server; "" is the library's own choice.
    keepalive_interval_s, keepalive_timeout_s
        A worker that was silent for the interval is asked for a sign of life, and is given up when
        it has not answered within the timeout. Whole seconds.
    """

    folder: Path
    port: int | tuple[int, int] = 0
    password_file: Path | None = None
    name: str = ""
    catalog: str = ""
    keepalive_interval_s: int = 10
    keepalive_timeout_s: int = 20


class Queue(Protocol):
    """A queue of tasks. All calls must come from one thread."""

    port: int
    library: str

    def submit(self, task: QueueTask) -> int:
        """Queue `task` and return its id. It is run once, whatever happens."""
        ...

    def wait(self, timeout_s: float) -> QueueEnded | None:
        """Return a task that has ended; None after `timeout_s`, or earlier when anything happened.

        Nothing moves but during this call: tasks are sent, watched files grow and workers are
        admitted in here.
        """
        ...

    def cancel(self, task_id: int) -> bool:
        """Take a task back and kill its processes; return False if it is not known (any more)."""
        ...

    def events(self) -> list[QueueEvent]:
        """Return what was heard of workers and places since the last call."""
        ...

    def stats(self) -> QueueStats:
        """Return the counters."""
        ...

    def close(self) -> None:
        """Send all workers away and stop listening; may be called twice."""
        ...


class TransactionLog:
    """Reads, while it is written, the log that the library keeps of workers and tasks.

    It is the only place where the library tells which worker joined or left.
    """

    def __init__(self, path: Path) -> None:
        self._stream = open(path, "rb")  # noqa: SIM115
        self._rest = b""
        self._addresses: dict[str, str] = {}
        self._joined: set[str] = set()

    def read(self) -> list[QueueEvent]:
        """Return the events of the lines that were completed since the last call."""
        *lines, self._rest = (self._rest + self._stream.read()).split(b"\n")
        events: list[QueueEvent] = []
        for line in lines:
            words = line.decode(errors="replace").split(maxsplit=5)
            if len(words) < 5 or words[0] == "#":
                continue
            if words[2] == "WORKER":
                events += self._worker(words[3], words[4:])
            elif words[2] == "TASK" and words[4] == "RUNNING":
                events.append(QueueTaskPlaced(int(words[3]), words[5].split()[0]))
        return events

    def close(self) -> None:
        """Close the log."""
        self._stream.close()

    def _worker(self, worker_id: str, words: list[str]) -> Iterator[QueueEvent]:
        if words[0] == "RESOURCES":
            # repeated whenever they change
            if worker_id in self._addresses and worker_id not in self._joined:
                self._joined.add(worker_id)
                size = [_number(words[1], name) for name in ("cores", "memory", "disk")]
                yield QueueWorkerJoined(self._addresses[worker_id], worker_id, *size)
        elif words[1].startswith("CONNECTION"):
            self._addresses[worker_id] = words[0]
        elif words[1].startswith("DISCONNECTION"):
            reason = words[1].removeprefix("DISCONNECTION").strip()
            self._addresses.pop(worker_id, None)
            if worker_id in self._joined:
                self._joined.remove(worker_id)
                yield QueueWorkerLeft(words[0], worker_id, _LEFT.get(reason, "it went away"))


def listen(port: int | tuple[int, int], create: Callable[[int], bool]) -> int:
    """Call `create` with ports of `port` until it succeeds, and return the one.

    Raises
    ------
    EngineError
        If none of them is free.
    """
    if port == 0:
        for _ in range(_RANDOM_TRIES):
            with socket.socket() as free:
                free.bind(("", 0))
                chosen: int = free.getsockname()[1]
            if create(chosen):
                return chosen
        raise EngineError("No port to listen on was found.", fix="give one: port=9123")
    first, last = port if isinstance(port, tuple) else (port, port)
    for chosen in range(first, last + 1):
        if create(chosen):
            return chosen
    if _forbidden(first):
        raise EngineError(
            f"Port {first} cannot be listened on by this user.",
            cause="ports below 1024 belong to the system",
            fix="give another port, or port=0 for any free one",
        )
    what = f"Port {first} is taken." if first == last else f"Ports {first} to {last} are all taken."
    raise EngineError(
        what,
        items=[holder] if (holder := _holder(first)) else [],
        cause="another run, perhaps of this very notebook, or another program listens there",
        fix="end the other run, give a range, port=(9123, 9199), or port=0 for any free one",
    )


def _forbidden(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError as error:
            return error.errno == errno.EACCES
    return False


def _holder(port: int) -> str:
    """Name the process that listens on `port`, where this user may know it."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
        except OSError:
            continue
        # state 0A is LISTEN
        inodes |= {row[9] for row in rows if row[3] == "0A" and int(row[1][-4:], 16) == port}
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(fd.readlink()) in wanted for fd in (process / "fd").iterdir()):
                words = (process / "cmdline").read_bytes().split(b"\0")
                command = b" ".join(words).decode(errors="replace").strip()
                return f"process {process.name}: {command[:120]}"
        except OSError:
            continue
    return ""


def _number(text: str, name: str) -> int:
    found = re.search(rf'"{name}": *\[? *([0-9.]+)', text)
    return int(float(found[1])) if found else 0
