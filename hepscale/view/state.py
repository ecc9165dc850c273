"""The events of a run folded into one plain record: what every view draws, and nothing else.

No I/O and no clock: the caller says what time it is. All times given to one state must come from
one clock (seconds, any zero). Folding an event costs about a microsecond, so that a run loop may
fold thousands of them a second and ask a view to draw after each.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hepscale.executor.shipping import EnvironmentReady, Packing, TaskPlaced
from hepscale.executor.task import (
    ChunkBegun,
    ChunkFailed,
    ChunkFailure,
    ChunksCounted,
    ChunkSplit,
    Event,
    FrameBytes,
    Notice,
    RunEnded,
    RunStarted,
    RunStatus,
    TaskBegun,
    TaskEnded,
    TaskId,
    TaskSubmitted,
    WorkerJoined,
    WorkerLost,
)
from hepscale.view.environment import EnvironmentState

if TYPE_CHECKING:
    from collections.abc import Callable

    from hepscale.view.environment import Told

__all__ = ["RunState", "advance", "apply"]

# The rate is taken over the last 15 s, or longer where chunks are slower than that: at least
# eight counts make it steady. Counts nearer than a quarter of a second are one sample.
_WINDOW_S = 15.0
_LEAST_SAMPLES = 8
_SAMPLE_S = 0.25
_LEAST_SPAN_S = 0.5


@dataclass(slots=True)
class RunState:
    """Where a run stands.

    Attributes
    ----------
    run_id, desc, unit, engine
        As the run began: its name, what it does ("Processing"), what a chunk is ("chunk", "file").
    chunks_total, chunks_done, chunks_failed, chunks_resumed, chunks_split
        Chunks; those from a journal are in `chunks_done` too. A split adds one to the total.
    entries_total, entries_done, entries_failed, entries_resumed
        Events; `entries_total` is 0 where it is not known.
    bytes_received, bytes_merged, bytes_resumed
        Bytes of frames as they arrive, of the outputs that were accepted, and of those from a
        journal.
    bytes_read
        What the chunks that were counted have read, as far as kernels count it.
    workers
        The slots of each worker that is there, by its id.
    workers_joined, workers_lost
        How many came and went.
    environment
        What the tasks run in.
    tasks
        The tasks that were handed to the engine and have not ended.
    tasks_died, tasks_lost, tasks_over_memory
        Tasks that ended early, so that what they left is tried again.
    task_memory_mb, task_given_mb
        The most that a task has used, and what the last one was given; 0 where it is not known.
    tasks_wall_s, tasks_cpu_s
        Seconds that the tasks that have ended took, and for which they kept a core busy.
    interposers
        How many tasks ran in what: "none", "userns", "parrot".
    repositories
        How repositories of CVMFS came to be below ``/cvmfs``, by name: "mounted", "client" (that
        of HepScale), "cvmfs2", "parrot".
    left_files, left_bytes
        What tasks left in their private ``/tmp``.
    failures
        The chunks that were given up, in the order of their failing.
    notices, lasting
        What the user should know; those of them that are shown when the run has ended, too.
    status
        How the run ended; None while it runs.
    start_time_s, end_time_s
        Seconds, by the clock of the run's own records; None until known.
    started_s, ended_s, now_s
        Seconds, by the clock of the caller of :func:`apply`.
    """

    run_id: str = ""
    desc: str = ""
    unit: str = "chunk"
    engine: str = ""
    chunks_total: int = 0
    chunks_done: int = 0
    chunks_failed: int = 0
    chunks_resumed: int = 0
    chunks_split: int = 0
    entries_total: int = 0
    entries_done: int = 0
    entries_failed: int = 0
    entries_resumed: int = 0
    bytes_received: int = 0
    bytes_merged: int = 0
    bytes_resumed: int = 0
    bytes_read: int = 0
    workers: dict[str, int] = field(default_factory=dict)
    workers_joined: int = 0
    workers_lost: int = 0
    environment: EnvironmentState = field(default_factory=EnvironmentState)
    tasks: set[TaskId] = field(default_factory=set)
    tasks_died: int = 0
    tasks_lost: int = 0
    tasks_over_memory: int = 0
    task_memory_mb: float = 0.0
    task_given_mb: int = 0
    tasks_wall_s: float = 0.0
    tasks_cpu_s: float = 0.0
    interposers: dict[str, int] = field(default_factory=dict)
    repositories: dict[str, str] = field(default_factory=dict)
    left_files: int = 0
    left_bytes: int = 0
    failures: list[ChunkFailure] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    lasting: list[str] = field(default_factory=list)
    status: RunStatus | None = None
    start_time_s: float | None = None
    end_time_s: float | None = None
    started_s: float | None = None
    ended_s: float | None = None
    now_s: float = float("-inf")
    _samples: deque[tuple[float, int]] = field(default_factory=deque, repr=False)

    @property
    def slots(self) -> int:
        """Number of slots of the workers that are there."""
        return sum(self.workers.values())

    @property
    def tasks_running(self) -> int:
        """Number of tasks that the engine has and that have not ended."""
        return len(self.tasks)

    @property
    def slots_busy(self) -> int:
        """Number of slots that have a task; tasks beyond the slots are waiting."""
        return min(self.slots, len(self.tasks))

    @property
    def tasks_retried(self) -> int:
        """Number of tasks that ended early; a cancelled one is not counted."""
        return self.tasks_died + self.tasks_lost + self.tasks_over_memory

    @property
    def task_cores(self) -> float | None:
        """Cores that a task keeps busy, on average; None where it is not known."""
        return self.tasks_cpu_s / self.tasks_wall_s if self.tasks_wall_s > 0 else None

    @property
    def counts_entries(self) -> bool:
        """Whether rate and fraction are in events; otherwise they are in chunks."""
        return self.entries_total > 0

    @property
    def fraction(self) -> float:
        """The part that is done or given up, from 0 to 1."""
        total = self._total
        return min(1.0, (self._done + self._given_up) / total) if total else 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began, until its end; 0 before it began."""
        if self.started_s is None:
            return 0.0
        end_s = self.now_s if self.ended_s is None else self.ended_s
        return max(0.0, end_s - self.started_s)

    @property
    def rate_per_s(self) -> float | None:
        """Events (or chunks, see `counts_entries`) per second, without those from a journal.

        Over the last seconds while the run goes on, over all of it when it has ended; None where
        too little is known.
        """
        if self.ended_s is not None:
            span_s, gained = self.elapsed_s, self._fresh
        elif self._samples:
            first_s, first = self._samples[0]
            span_s, gained = self.now_s - first_s, self._fresh - first
        else:
            return None
        least_s = _LEAST_SPAN_S if self.ended_s is None else 0.0
        return gained / span_s if gained > 0 and span_s > least_s else None

    @property
    def remaining_s(self) -> float | None:
        """Estimate of the seconds that are left; None where it is not known, or at the end."""
        rate = self.rate_per_s
        if rate is None or self.status is not None:
            return None
        return max(0, self._total - self._done - self._given_up) / rate

    @property
    def _total(self) -> int:
        return self.entries_total if self.counts_entries else self.chunks_total

    @property
    def _done(self) -> int:
        return self.entries_done if self.counts_entries else self.chunks_done

    @property
    def _given_up(self) -> int:
        return self.entries_failed if self.counts_entries else self.chunks_failed

    @property
    def _fresh(self) -> int:
        if self.counts_entries:
            return self.entries_done - self.entries_resumed
        return self.chunks_done - self.chunks_resumed


def advance(state: RunState, now_s: float) -> None:
    """Let time pass: what a run loop calls when nothing has happened.

    Parameters
    ----------
    state
        Changed in place.
    now_s
        Seconds; a time before the last one is ignored.
    """
    state.now_s = max(state.now_s, now_s)


def apply(state: RunState, event: Event, now_s: float) -> None:
    """Fold one event into the state.

    Parameters
    ----------
    state
        Changed in place.
    event
        What an engine or the run has reported; one of an unknown kind changes nothing.
    now_s
        Seconds, by the same clock for all events of a run.
    """
    advance(state, now_s)
    fold = _FOLDS.get(type(event))
    if fold is not None:
        fold(state, event)


def _sample(state: RunState) -> None:
    samples, now_s = state._samples, state.now_s
    if not samples:
        began_s = now_s if state.started_s is None else state.started_s
        samples.append((began_s, 0))
    if len(samples) > 1 and now_s - samples[-2][0] < _SAMPLE_S:
        samples[-1] = (now_s, state._fresh)
        return
    samples.append((now_s, state._fresh))
    while len(samples) > _LEAST_SAMPLES and samples[1][0] <= now_s - _WINDOW_S:
        samples.popleft()


def _widen(state: RunState) -> None:
    """Keep the totals at least as large as what was counted, whatever was announced."""
    state.chunks_total = max(state.chunks_total, state.chunks_done + state.chunks_failed)
    if state.counts_entries:
        state.entries_total = max(state.entries_total, state.entries_done + state.entries_failed)


def _run_started(state: RunState, event: RunStarted) -> None:
    state.run_id, state.desc, state.engine = event.run_id, event.desc, event.engine
    state.unit = event.unit
    state.chunks_total, state.entries_total = event.chunks, event.entries
    state.start_time_s = event.time_s
    state.started_s = state.now_s
    # Counts from before are in another unit where the events have just become known.
    state._samples.clear()
    _widen(state)


def _run_ended(state: RunState, event: RunEnded) -> None:
    state.status = event.status
    state.end_time_s = event.time_s
    state.ended_s = state.now_s
    state.tasks.clear()


def _chunks_counted(state: RunState, event: ChunksCounted) -> None:
    state.chunks_done += event.chunks
    state.entries_done += event.entries
    state.bytes_merged += event.nbytes
    state.bytes_read += event.read_bytes
    if event.resumed:
        state.chunks_resumed += event.chunks
        state.bytes_resumed += event.nbytes
        state.entries_resumed += event.entries
    else:
        _sample(state)
    _widen(state)


def _chunk_failed(state: RunState, event: ChunkFailed) -> None:
    state.chunks_failed += 1
    state.entries_failed += max(0, event.failure.entries)
    state.failures.append(event.failure)
    _widen(state)


def _chunk_split(state: RunState, event: ChunkSplit) -> None:  # noqa: ARG001
    state.chunks_split += 1
    state.chunks_total += 1


def _chunk_begun(state: RunState, event: ChunkBegun) -> None:  # noqa: ARG001
    # The rate counts from here, so that starting the workers does not make it look slow.
    if not state._samples:
        state._samples.append((state.now_s, state._fresh))


def _frame_bytes(state: RunState, event: FrameBytes) -> None:
    state.bytes_received += len(event.data)


def _task_submitted(state: RunState, event: TaskSubmitted) -> None:
    state.tasks.add(event.task_id)
    state.task_given_mb = event.memory_mb or 0


def _task_ended(state: RunState, event: TaskEnded) -> None:
    _environment(state, event)
    state.tasks.discard(event.task_id)
    state.tasks_died += event.status == "died"
    state.tasks_lost += event.status == "lost"
    state.tasks_over_memory += event.status == "memory"
    state.task_memory_mb = max(state.task_memory_mb, event.usage.memory_mb)
    state.tasks_wall_s += event.usage.wall_s
    state.tasks_cpu_s += event.usage.cpu_s
    inside = event.interposed
    if inside is not None:
        state.interposers[inside.kind] = state.interposers.get(inside.kind, 0) + 1
        state.repositories.update(inside.repositories)
        state.left_files += inside.left_files
        state.left_bytes += inside.left_bytes


def _worker_joined(state: RunState, event: WorkerJoined) -> None:
    state.workers_joined += event.worker_id not in state.workers
    state.workers[event.worker_id] = event.slots


def _worker_lost(state: RunState, event: WorkerLost) -> None:
    _environment(state, event)
    if state.workers.pop(event.worker_id, None) is not None:
        state.workers_lost += not event.sent_away


def _environment(state: RunState, event: Told) -> None:
    state.environment.see(event)


def _notice(state: RunState, event: Notice) -> None:
    state.notices.append(event.text)
    if event.lasting:
        state.lasting.append(event.text)


_FOLDS: dict[type, Callable[[RunState, Any], None]] = {
    ChunkBegun: _chunk_begun,
    ChunkFailed: _chunk_failed,
    ChunkSplit: _chunk_split,
    ChunksCounted: _chunks_counted,
    EnvironmentReady: _environment,
    FrameBytes: _frame_bytes,
    Notice: _notice,
    Packing: _environment,
    RunEnded: _run_ended,
    RunStarted: _run_started,
    TaskBegun: _environment,
    TaskEnded: _task_ended,
    TaskPlaced: _environment,
    TaskSubmitted: _task_submitted,
    WorkerJoined: _worker_joined,
    WorkerLost: _worker_lost,
}
