"""The records that cross the seams: what is run, what came of it, what happened meanwhile.

Everything here is frozen and free of I/O. Units are in the names; times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NewType, TypeAlias

from hepscale.executor.shipping import EnvironmentReady, Packing, TaskPlaced

if TYPE_CHECKING:
    from pathlib import Path

    from hepscale.env.environment import Environment

__all__ = [
    "Chunk",
    "ChunkBegun",
    "ChunkFailed",
    "ChunkFailure",
    "ChunkKey",
    "ChunkSplit",
    "ChunksCounted",
    "EngineEvent",
    "Event",
    "FrameBytes",
    "InputFile",
    "Interposed",
    "Notice",
    "Resources",
    "RunEnded",
    "RunEvent",
    "RunStarted",
    "Task",
    "TaskBegun",
    "TaskClock",
    "TaskEnded",
    "TaskId",
    "TaskSubmitted",
    "Usage",
    "WorkerJoined",
    "WorkerLost",
]

ChunkKey = NewType("ChunkKey", str)
TaskId = NewType("TaskId", str)

FailureKind = Literal["exception", "memory", "wall", "died", "output", "merge"]
EndStatus = Literal["done", "died", "memory", "cancelled", "lost"]
RunStatus = Literal["done", "failed", "stopped", "interrupted"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One item that coffea's Runner hands to the executor: the unit that is counted.

    Attributes
    ----------
    key
        What identifies it: function, code and data; equal keys give equal results.
    item
        The object itself (a ``WorkItem``, a ``FileMeta``, or anything that pickles).
    dataset, file
        For reports; empty where the item has none.
    start, stop
        The entry range; equal where the item has none.
    """

    key: ChunkKey
    item: Any
    dataset: str = ""
    file: str = ""
    start: int = 0
    stop: int = 0

    @property
    def entries(self) -> int:
        """Number of entries (events), 0 where the item has no entry range."""
        return self.stop - self.start

    def __str__(self) -> str:
        where = self.file or repr(self.item)
        text = f"{self.dataset}: {where}" if self.dataset else where
        return f"{text}, entries {self.start} to {self.stop}" if self.entries else text


@dataclass(frozen=True, slots=True)
class Resources:
    """What one task may use; None: no limit. ``wall_s`` is the limit for each chunk of it."""

    cores: int = 1
    memory_mb: int | None = None
    disk_mb: int | None = None
    wall_s: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What one task has used. ``memory_mb`` is the peak resident size of its processes."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    memory_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that a task finds in its directory as ``name``; `source` is where we have it."""

    name: str
    source: Path


@dataclass(frozen=True, slots=True)
class Task:
    """What one worker slot runs: a list of chunks with one payload and one resource request.

    Attributes
    ----------
    id
        Unique within the process.
    attempt
        Counts the tasks that were made for its oldest chunk, from 1.
    chunks
        The chunks, in the order in which they run.
    work
        The pickled list of ``(key, entries, item)`` that the worker reads.
    payload
        The pickled function, merge and output pickler, shared by all tasks of the run.
    code
        Folder with the local modules that the payload imports, or None.
    environment
        What it runs in; None: what this process runs in.
    inputs
        Files to be found under relative names in the task's directory.
    resources
        What it may use.
    expected_memory_mb
        What it is going to need, as far as others have shown; None: not known.
    frame_interval_s
        Least time between two frames with output.
    compression
        zlib's level for frames; 0: none.
    isolate
        Whether each chunk gets a frame of its own: outputs could not be merged or pickled together.
    """

    id: TaskId
    attempt: int
    chunks: tuple[Chunk, ...]
    work: bytes
    payload: Path
    code: Path | None = None
    environment: Environment | None = None
    inputs: tuple[InputFile, ...] = ()
    resources: Resources = field(default_factory=Resources)
    expected_memory_mb: int | None = None
    frame_interval_s: float = 0.25
    compression: int = 1
    isolate: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """The absolute paths of the files that its chunks name."""
        names = dict.fromkeys(chunk.file.removeprefix("file://") for chunk in self.chunks)
        return tuple(name for name in names if name.startswith("/"))


# -- what an engine reports ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FrameBytes:
    """More bytes of a running task's frame file."""

    task_id: TaskId
    data: bytes


@dataclass(frozen=True, slots=True)
class Interposed:
    """What a task ran in; `why` is the reason where that is not what was hoped for.

    ``repositories`` are pairs of a name and how it came there; the rest is left in its ``/tmp``.
    """

    kind: str
    why: str = ""
    repositories: tuple[tuple[str, str], ...] = ()
    left_files: int = 0
    left_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """A task has ended and all of its frame bytes have been reported.

    ``status``: "done" (its process ended by itself with code 0), "died" (signal or other code),
    "memory" (stopped over its memory limit), "cancelled", "lost" (its worker vanished).
    ``output_tail`` is the last of what it printed.
    """

    task_id: TaskId
    status: EndStatus
    detail: str = ""
    usage: Usage = field(default_factory=Usage)
    output_tail: str = ""
    interposed: Interposed | None = None


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker with `slots` slots is ready for tasks.

    ``memory_mb`` is for all tasks that it runs at a time; 0: they are not placed by it.
    """

    worker_id: str
    slots: int
    host: str = ""
    warm: bool = False
    memory_mb: int = 0


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker went away; each of its tasks is reported as lost too.

    ``sent_away``: the engine itself ended it, and nothing was lost.
    """

    worker_id: str
    reason: str = ""
    sent_away: bool = False


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that the user should know, said once; `lasting`: also where the run is saved."""

    text: str
    lasting: bool = False


EngineEvent: TypeAlias = FrameBytes | TaskPlaced | TaskEnded | WorkerJoined | WorkerLost | Notice


# -- what a run reports --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChunkFailure:
    """A chunk that was given up.

    Attributes
    ----------
    dataset, file, start, stop
        The chunk.
    kind
        What failed; "wall": over its time, "output": not to be pickled, "merge": not to be added.
    reason
        One line.
    where
        The user's own line, ``file:line in function: text``, where there is one.
    traceback
        The worker's traceback as text, where there is one.
    attempts
        How often it was tried.
    output_tail
        The last of what its task printed.
    exceptions
        The exception and its causes, outermost first, as far as they could be brought back.
    """

    dataset: str
    file: str
    start: int
    stop: int
    kind: FailureKind
    reason: str
    where: str = ""
    traceback: str = ""
    attempts: int = 1
    output_tail: str = ""
    exceptions: tuple[BaseException, ...] = field(default=(), compare=False, repr=False)

    @property
    def entries(self) -> int:
        """Number of entries of the chunk."""
        return self.stop - self.start

    def __str__(self) -> str:
        text = ", ".join(part for part in (self.dataset, self.file) if part)
        if self.entries:
            text += f", entries {self.start} to {self.stop}"
        return f"{text}: {self.reason}" if text else self.reason


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run begins: `chunks` of `unit` ("chunk", "file", ...), with `entries` events in all."""

    run_id: str
    desc: str
    unit: str
    chunks: int
    entries: int
    engine: str
    time_s: float


@dataclass(frozen=True, slots=True)
class TaskSubmitted:
    """A task was handed to the engine, with the memory that it is expected to need."""

    task_id: TaskId
    chunks: int
    memory_mb: int | None = None


@dataclass(frozen=True, slots=True)
class TaskBegun:
    """The process of a task runs: whatever it needs is on its worker."""

    task_id: TaskId


@dataclass(frozen=True, slots=True)
class TaskClock:
    """What took how long within a task, as its last frame says; the rest of it was processing.

    ``load_s`` is for function and chunks, and what they import.
    """

    task_id: TaskId
    wall_s: float
    load_s: float = 0.0
    merge_s: float = 0.0
    stream_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ChunkBegun:
    """A worker began to work on a chunk."""

    task_id: TaskId
    key: ChunkKey


@dataclass(frozen=True, slots=True)
class ChunksCounted:
    """Chunks were merged into the output; `resumed` when they came from a journal."""

    chunks: int
    entries: int
    nbytes: int
    read_bytes: int = 0
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class ChunkFailed:
    """A chunk was given up."""

    failure: ChunkFailure


@dataclass(frozen=True, slots=True)
class ChunkSplit:
    """A chunk exceeded its memory and is run again as two."""

    file: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run is over."""

    status: RunStatus
    time_s: float


RunEvent: TypeAlias = (
    RunStarted
    | Packing
    | EnvironmentReady
    | TaskSubmitted
    | TaskBegun
    | TaskClock
    | ChunkBegun
    | ChunksCounted
    | ChunkFailed
    | ChunkSplit
    | RunEnded
)
Event: TypeAlias = EngineEvent | RunEvent
