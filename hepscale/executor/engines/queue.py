"""What the bindings to Work Queue and TaskVine give: records, and a queue of tasks with files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "MICRO",
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
    "QueueWorkerRefused",
    "apart",
]

# a worker puts the task into a process group of its own, which it kills; should the task be faster,
# it fails to, and waits for ever for the end of what it could not kill
_LEAD = (
    'read -r _ _ _ _ group _ </proc/$$/stat; [ "$group" = $$ ] && exec "$@"; '
    'command -v setsid >/dev/null && exec setsid "$@"; exec "$@"'
)
# the socket of the worker must not stay open in what outlives it
_CLOSE = "exec " + " ".join(f"{number}<&-" for number in range(3, 10))

# the library counts time in microseconds
MICRO = 1e-6
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
    shared
        A cached input that a worker may have from another worker, where the library can do that.
    """

    local: Path
    remote: str
    cache: bool = False
    shared: bool = False
    watch: bool = False
    failure_only: bool = False


@dataclass(frozen=True, slots=True)
class QueueTask:
    """A shell command with its files.

    A worker runs as many tasks at once as its cores, memory and disk allow. ``memory_mb`` is not
    enforced; ``disk_mb`` is, on the task's folder with its inputs. ``wall_s`` of 0 is no limit; it
    ends the shell only.
    """

    command: str
    inputs: tuple[QueueFile, ...] = ()
    outputs: tuple[QueueFile, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    cores: int = 1
    memory_mb: int = 1
    disk_mb: int = 1000
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
    """Counters of a queue since its creation; ``busy_s`` includes waiting for workers' answers."""

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

    @classmethod
    def of(cls, stats: Any) -> QueueStats:
        """Return what the library's own record says, by whichever binding it came."""
        busy = stats.time_send + stats.time_receive + stats.time_status_msgs + stats.time_internal
        return cls(
            workers_connected=stats.workers_connected,
            workers_joined=stats.workers_joined,
            workers_removed=stats.workers_removed,
            workers_busy=stats.workers_busy,
            tasks_waiting=stats.tasks_waiting,
            tasks_running=stats.tasks_running,
            tasks_dispatched=stats.tasks_dispatched,
            sent_bytes=stats.bytes_sent,
            received_bytes=stats.bytes_received,
            cores=stats.total_cores,
            polling_s=stats.time_polling * MICRO,
            busy_s=busy * MICRO,
        )


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


@dataclass(frozen=True, slots=True)
class QueueWorkerRefused:
    """A worker was not admitted; `reason` is one phrase."""

    worker: str
    reason: str


QueueEvent: TypeAlias = QueueWorkerJoined | QueueWorkerLeft | QueueWorkerRefused | QueueTaskPlaced


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
    ssl
        Whether workers speak TLS, where the library can.
    keepalive_interval_s, keepalive_timeout_s
        A worker that was silent for the interval is asked for a sign of life, and is given up when
        it has not answered within the timeout. Whole seconds.
    """

    folder: Path
    port: int | tuple[int, int] = 0
    password_file: Path | None = None
    name: str = ""
    catalog: str = ""
    ssl: bool = True
    keepalive_interval_s: int = 10
    keepalive_timeout_s: int = 20


class Queue(Protocol):
    """A queue of tasks. All calls must come from one thread.

    Attributes
    ----------
    port
        On which it listens.
    library
        Whose it is, for messages.
    worker
        Name of the program that its workers run.
    ssl
        Whether workers have to speak TLS.
    """

    port: int
    library: str
    worker: str
    ssl: bool

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


def apart(command: str) -> str:
    """Return a shell command that runs a program so that its worker can end it and be seen to end.

    Parameters
    ----------
    command
        The program and its arguments, in the shell's quotes.
    """
    return f"{_CLOSE}; set -- {command}; {_LEAD}"
