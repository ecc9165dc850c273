"""The loop: feed, poll, merge, retry, split, finish or salvage.

Knows neither which engine it has nor coffea.
"""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hepscale.errors import HepScaleError, PayloadError
from hepscale.executor import failures, policy
from hepscale.executor.job import Outcome
from hepscale.executor.ledger import Ledger
from hepscale.executor.output import Output
from hepscale.executor.task import (
    Chunk,
    ChunkBegun,
    ChunkFailed,
    ChunkFailure,
    ChunkKey,
    ChunksCounted,
    ChunkSplit,
    Event,
    FailureKind,
    FrameBytes,
    Notice,
    RunEnded,
    RunStarted,
    RunStatus,
    Task,
    TaskEnded,
    TaskId,
    TaskSubmitted,
    WorkerJoined,
    WorkerLost,
)
from hepscale.executor.waiting import Waiting
from hepscale.worker.frames import Frame, FrameReader, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hepscale.executor.engines.base import Engine
    from hepscale.executor.job import Job, Observer, StopRequest
    from hepscale.executor.journal import Journal

__all__ = ["Run"]

log = logging.getLogger(__name__)

_POLL_S = 0.1
_task_numbers = itertools.count(1)


@dataclass
class _Submitted:
    """A task that the engine has."""

    task: Task
    sent_s: float
    reader: FrameReader = field(default_factory=FrameReader)
    current: ChunkKey | None = None
    begun_s: float = 0.0
    spent_s: float = 0.0
    done: Mapping[str, Any] | None = None
    over_wall: bool = False

    def __post_init__(self) -> None:
        self.owed = {chunk.key: chunk for chunk in self.task.chunks}
        self.weight = sum(map(policy.weight, self.task.chunks))


class Run:
    """One run.

    Parameters
    ----------
    job
        What is run.
    chunks
        Its chunks; their keys differ.
    engine
        Who runs it; started and closed here.
    observer
        Is told each event.
    journal
        Where accepted frames go, or None.
    stop
        Looked at between two polls.
    """

    def __init__(
        self,
        job: Job,
        chunks: Sequence[Chunk],
        engine: Engine,
        observer: Observer,
        journal: Journal | None,
        stop: StopRequest,
    ) -> None:
        self._job = job
        self._chunks = chunks
        self._engine = engine
        self._observer = observer
        self._observe = observer.see
        self._stop = stop
        self._ledger = Ledger(chunks)
        self._output = Output(job.merge, journal)
        self._waiting = Waiting()
        self._attempts: dict[ChunkKey, int] = {}
        self._running: dict[TaskId, _Submitted] = {}
        self._slots: dict[str, int] = {}
        self._failed: list[ChunkFailure] = []
        self._failed_in_a_row: list[ChunkFailure] = []
        self._files = len({chunk.file for chunk in chunks})
        self._journal_failure_told = False

    def execute(self, earlier: Iterable[Frame] = ()) -> Outcome:
        """Run to the end.

        Parameters
        ----------
        earlier
            Frames of a journal: what they hold is counted and not run again.

        Returns
        -------
        Outcome

        Raises
        ------
        PayloadError
            If the function cannot be loaded on a worker.
        EngineError, RunDirectoryError
            From the engine.
        KeyboardInterrupt
            If the user insists; the engine is closed all the same.
        """
        self._observe(
            RunStarted(
                self._job.run_id,
                self._job.desc,
                self._job.unit,
                len(self._chunks),
                sum(chunk.entries for chunk in self._chunks),
                self._engine.name,
                time.time(),
            )
        )
        status: RunStatus = "failed"
        try:
            for frame in earlier:
                self._replay(frame)
            self._waiting.add(self._ledger.open_chunks())
            if not self._ledger.done:
                self._engine.start()
            status = self._loop()
        except HepScaleError as error:
            error.partial_output, error.failed = self._output.value, tuple(self._failed)
            raise
        finally:
            self._engine.close()
            self._observe(RunEnded(status, time.time()))
        return Outcome(
            status,
            self._output.value,
            tuple(self._failed),
            self._ledger.counted,
            len(self._ledger.chunks),
        )

    # -- the loop ------------------------------------------------------------------------------

    def _loop(self) -> RunStatus:
        while not self._ledger.done:
            if self._stop.requested:
                self._take(self._engine.poll(0))
                return "interrupted"
            if policy.stop_early(self._failed_in_a_row, self._files):
                return "stopped"
            self._feed()
            self._take(self._engine.poll(_POLL_S))
            self._observer.tick()
            self._enforce_wall()
        return "failed" if self._failed else "done"

    def _take(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, FrameBytes):
                submitted = self._running[event.task_id]
                for frame in submitted.reader.feed(event.data):
                    self._take_frame(submitted, frame)
                if submitted.reader.broken:
                    log.warning("task %s: %s", event.task_id, submitted.reader.broken)
                    self._engine.cancel(event.task_id)
                continue
            if isinstance(event, TaskEnded):
                self._end_task(event)
            elif isinstance(event, WorkerJoined):
                self._slots[event.worker_id] = event.slots
            elif isinstance(event, WorkerLost):
                self._slots.pop(event.worker_id, None)
            self._observe(event)

    def _enforce_wall(self) -> None:
        wall_s = self._job.resources.wall_s
        if wall_s is None:
            return
        now_s = time.monotonic()
        for submitted in self._running.values():
            if submitted.current and now_s - submitted.begun_s > wall_s and not submitted.over_wall:
                submitted.over_wall = True
                self._engine.cancel(submitted.task.id)

    # -- handing out ---------------------------------------------------------------------------

    def _feed(self) -> None:
        slots = sum(self._slots.values())
        while len(self._running) < slots:
            chunks = self._waiting.next_task(slots, self._running_s())
            if not chunks:
                return
            self._submit(chunks, slots)

    def _running_s(self) -> float:
        """Return how many seconds of work the running tasks have still before them."""
        unit_s, now_s = self._waiting.pace.unit_s or 0.0, time.monotonic()
        return sum(
            max(one.weight * unit_s - (now_s - one.sent_s), 0.0) for one in self._running.values()
        )

    def _submit(self, chunks: list[Chunk], slots: int) -> None:
        job = self._job
        inputs = {one.name: one for chunk in chunks for one in job.inputs(chunk)}
        task = Task(
            id=TaskId(f"{job.run_id}-{next(_task_numbers)}"),
            attempt=1 + self._attempts.get(chunks[0].key, 0),
            chunks=tuple(chunks),
            work=job.dumps([(chunk.key, chunk.entries, chunk.item) for chunk in chunks]),
            payload=job.payload,
            code=job.code,
            inputs=tuple(inputs.values()),
            resources=job.resources,
            frame_interval_s=policy.frame_interval_s(slots, self._waiting.pace),
            compression=job.compression,
            isolate=self._waiting.wants_isolation(chunks),
        )
        self._running[task.id] = _Submitted(task, time.monotonic())
        self._engine.submit(task)
        self._observe(TaskSubmitted(task.id, len(chunks)))

    # -- taking in -----------------------------------------------------------------------------

    def _take_frame(self, submitted: _Submitted, frame: Frame) -> None:
        meta = frame.meta
        if frame.kind is Kind.BEGIN:
            submitted.current, submitted.begun_s = meta["key"], time.monotonic()
            self._observe(ChunkBegun(submitted.task.id, meta["key"]))
        elif frame.kind is Kind.OUTPUT:
            self._take_output(submitted, frame)
        elif frame.kind is Kind.FAILED:
            if not meta["key"]:
                self._refuse_payload(meta)
            if submitted.owed.pop(meta["key"], None) and self._ledger.is_open(meta["key"]):
                self._take_failure(meta["key"], frame)
        elif frame.kind is Kind.DONE:
            submitted.done = meta

    def _take_output(self, submitted: _Submitted, frame: Frame) -> None:
        begun_s = time.monotonic()
        keys, entries = frame.meta["chunks"], frame.meta["entries"]
        for key in keys:
            submitted.owed.pop(key, None)
        if not self._ledger.accept(keys):
            log.info("dropped a frame of %s: counted before", submitted.task.id)
            return
        error = self._output.add(frame)
        if error is not None:
            self._ledger.take_back(keys)
            self._cannot_merge(keys, error)
            return
        spent_s = frame.meta["spent_s"]
        submitted.spent_s += spent_s
        total = sum(policy.weight(self._ledger.chunks[key]) for key in keys)
        pace = self._waiting.pace.after_chunks(spent_s, total)
        self._waiting.pace = pace.after_merge(time.monotonic() - begun_s)
        self._failed_in_a_row.clear()
        self._observe(ChunksCounted(len(keys), sum(entries), len(frame.raw)))
        self._tell_journal_failure()

    def _cannot_merge(self, keys: list[ChunkKey], error: Exception) -> None:
        if len(keys) > 1:
            # which of them it is shows when each comes alone
            chunks = [self._ledger.chunks[key] for key in keys]
            self._waiting.isolate(chunks)
            self._waiting.put_back(chunks)
            return
        text = " ".join(str(error).split()) or type(error).__name__
        reason = f"its output cannot be added to that of the other chunks ({text})"
        self._give_up(keys[0], "merge", reason)

    def _take_failure(self, key: ChunkKey, frame: Frame) -> None:
        chunk = self._ledger.chunks[key]
        failure = failures.from_frame(
            chunk, frame.meta, frame.payload, self._job.sources, self._job.wraps
        )
        if failure.kind == "memory" and self._split(chunk):
            return
        self._record(key, failure)

    def _refuse_payload(self, meta: Mapping[str, Any]) -> None:
        told = meta["exceptions"][0]
        missing = told["type"] == "ModuleNotFoundError"
        raise PayloadError(
            "The analysis cannot be loaded on a worker.",
            items=[f"{told['type']}: {told['message']}"],
            cause="a module is imported in a way that cannot be seen in advance"
            if missing
            else "an object in it cannot be made again from its pickle",
            fix="import the module at the top of the notebook or of the module that uses it"
            if missing
            else "create such objects in process(), not in __init__()",
        )

    # -- ends and failures ---------------------------------------------------------------------

    def _end_task(self, event: TaskEnded) -> None:
        submitted = self._running.pop(event.task_id)
        left = [chunk for chunk in submitted.owed.values() if self._ledger.is_open(chunk.key)]
        if submitted.done is None:
            left = self._blame(submitted, event, left)
        else:
            wall_s = time.monotonic() - submitted.sent_s
            self._waiting.pace = self._waiting.pace.after_task(wall_s - submitted.spent_s)
            if submitted.done["stopped"] == "isolate":
                self._waiting.isolate(left)
            elif not submitted.done["stopped"]:
                left = self._sent_again(left)
        self._waiting.put_back(left)

    def _sent_again(self, left: list[Chunk]) -> list[Chunk]:
        """Return those chunks to run again whose output was sent but did not arrive whole."""
        again = []
        for chunk in left:
            attempts = self._attempts[chunk.key] = self._attempts.get(chunk.key, 0) + 1
            if policy.may_try_again(attempts, self._job.retries):
                again.append(chunk)
            else:
                reason = f"its output arrived damaged {attempts} times"
                self._give_up(chunk.key, "died", reason, attempts)
        return again

    def _blame(self, submitted: _Submitted, event: TaskEnded, left: list[Chunk]) -> list[Chunk]:
        """Deal with the chunk in which a task ended; return those that are just run again."""
        if not left:
            return left
        culprit = next((chunk for chunk in left if chunk.key == submitted.current), left[0])
        attempts = self._attempts[culprit.key] = self._attempts.get(culprit.key, 0) + 1
        rest = [chunk for chunk in left if chunk is not culprit]
        tail = event.output_tail
        if submitted.over_wall:
            limit = f"did not end within {self._job.resources.wall_s:g} s"
            self._give_up(culprit.key, "wall", limit, attempts, tail)
        elif event.status == "memory":
            if not self._split(culprit):
                limit = f"needs more than {self._job.resources.memory_mb} MB"
                self._give_up(culprit.key, "memory", limit, attempts, tail)
        elif policy.may_try_again(attempts, self._job.retries):
            self._waiting.put_alone([culprit])
        else:
            detail = event.detail or "it left without a result"
            reason = f"its process ended {attempts} times: {detail}"
            self._give_up(culprit.key, "died", reason, attempts, tail)
        return rest

    def _split(self, chunk: Chunk) -> bool:
        parts = self._job.split(chunk)
        if parts is None:
            return False
        self._ledger.split(chunk.key, parts)
        self._output.note_split(chunk.key, [part.key for part in parts])
        self._waiting.put_alone(parts)
        self._observe(ChunkSplit(chunk.file, chunk.start, chunk.stop))
        return True

    def _give_up(
        self,
        key: ChunkKey,
        kind: FailureKind,
        reason: str,
        attempts: int = 1,
        output_tail: str = "",
    ) -> None:
        chunk = self._ledger.chunks[key]
        self._record(
            key,
            failures.describe(chunk, kind, reason, attempts=attempts, output_tail=output_tail),
        )

    def _record(self, key: ChunkKey, failure: ChunkFailure) -> None:
        self._ledger.give_up(key)
        self._failed.append(failure)
        self._failed_in_a_row.append(failure)
        self._observe(ChunkFailed(failure))

    # -- resuming ------------------------------------------------------------------------------

    def _replay(self, frame: Frame) -> None:
        if frame.kind is Kind.SPLIT and self._ledger.is_open(frame.meta["key"]):
            parts = self._job.split(self._ledger.chunks[frame.meta["key"]])
            if parts is not None and [part.key for part in parts] == frame.meta["parts"]:
                self._ledger.split(frame.meta["key"], parts)
                self._output.note_split(frame.meta["key"], frame.meta["parts"])
        elif frame.kind is Kind.OUTPUT and self._ledger.accept(frame.meta["chunks"]):
            error = self._output.add(frame)
            if error is not None:
                self._ledger.take_back(frame.meta["chunks"])
                return
            n_chunks, entries = len(frame.meta["chunks"]), sum(frame.meta["entries"])
            self._observe(ChunksCounted(n_chunks, entries, len(frame.raw), resumed=True))

    def _tell_journal_failure(self) -> None:
        if self._output.journal_failure and not self._journal_failure_told:
            self._journal_failure_told = True
            self._observe(
                Notice(
                    f"This run cannot be resumed: {self._output.journal_failure} in the run "
                    "directory. Its result is not affected. HEPSCALE_RUN_DIR names another."
                )
            )
