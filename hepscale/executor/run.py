"""The loop: feed, poll, merge, retry, split, finish or salvage.

Knows neither which engine it has nor coffea.
"""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hepscale.errors import HepScaleError
from hepscale.executor import policy
from hepscale.executor.allocation import Allocation
from hepscale.executor.faults import Faults
from hepscale.executor.job import Outcome
from hepscale.executor.ledger import Ledger
from hepscale.executor.output import Output
from hepscale.executor.running import Running
from hepscale.executor.task import (
    Chunk,
    ChunkBegun,
    ChunksCounted,
    Event,
    FrameBytes,
    Notice,
    RunEnded,
    RunStarted,
    RunStatus,
    Task,
    TaskBegun,
    TaskClock,
    TaskEnded,
    TaskId,
    TaskSubmitted,
    WorkerJoined,
    WorkerLost,
)
from hepscale.executor.waiting import Waiting
from hepscale.worker.frames import Frame, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hepscale.executor.engines.base import Engine
    from hepscale.executor.job import Job, Observer, StopRequest
    from hepscale.executor.journal import Journal

__all__ = ["Run"]

log = logging.getLogger(__name__)

_POLL_S = 0.1
_ENDS_S = 0.5
_CLOCKED = ("load", "merge", "stream")
_task_numbers = itertools.count(1)


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
        self._faults = Faults(job, self._ledger, self._waiting, self._output, observer)
        self._running: dict[TaskId, Running] = {}
        self._workers: dict[str, WorkerJoined] = {}
        self._allocation = Allocation(job.resources.memory_mb)
        self._journal_failure_told = self._memory_told = False

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
                if self._stop.requested:
                    break
                self._replay(frame)
            self._waiting.add(self._ledger.open_chunks())
            if not self._ledger.done:
                self._engine.start()
            status = self._loop()
        except HepScaleError as error:
            error.partial_output, error.failed = self._output.value, tuple(self._faults.failed)
            raise
        finally:
            self._engine.close()
            self._observe(RunEnded(status, time.time()))
        self._observer.tick(self._merged)
        return Outcome(
            status,
            self._output.value,
            tuple(self._faults.failed),
            self._ledger.counted,
            len(self._ledger.chunks),
        )

    def _merged(self) -> Any:
        return self._output.whole

    # -- the loop ------------------------------------------------------------------------------

    def _loop(self) -> RunStatus:
        while not self._ledger.done:
            if self._stop.requested:
                self._take(self._engine.poll(0))
                return "interrupted"
            if self._faults.stop_early():
                return "stopped"
            self._feed()
            events = self._engine.poll(_POLL_S)
            polled_s = time.monotonic()
            self._take(events)
            self._observer.tick(self._merged)
            self._enforce_wall(polled_s)
        if self._job.interposed:
            self._hear_ends()
        return "failed" if self._faults.failed else "done"

    def _hear_ends(self) -> None:
        """Wait a little for the ends of tasks that have sent all that they owe."""
        end_s = time.monotonic() + _ENDS_S
        while any(not one.owed for one in self._running.values()) and time.monotonic() < end_s:
            self._take(self._engine.poll(_POLL_S))

    def _take(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, FrameBytes):
                running = self._running[event.task_id]
                was_broken = running.reader.broken
                for frame in running.reader.feed(event.data):
                    self._take_frame(running, frame)
                if running.reader.broken and not was_broken:
                    log.warning("task %s: %s", event.task_id, running.reader.broken)
                    self._engine.cancel(event.task_id)
                continue
            if isinstance(event, TaskEnded):
                running = self._running.pop(event.task_id)
                if running.done is not None:
                    self._learn(running, running.done["clock"].get("stream", 0.0))
                    self._widen(running)
                self._learn_memory(event)
                self._faults.end(running, event)
            elif isinstance(event, WorkerJoined):
                self._workers[event.worker_id] = event
            elif isinstance(event, WorkerLost):
                self._workers.pop(event.worker_id, None)
            self._observe(event)

    def _widen(self, running: Running) -> None:
        """Give the tasks that follow what this one has missed in its environment."""
        job = self._job
        missed = running.done.get("missing", ()) if running.done else ()
        if missed and job.widen is not None and running.task.environment is job.environment:
            names = " and ".join(missed)
            self._observe(
                Notice(
                    f"{names}: imported in a way that is not seen in advance. It is packed now, "
                    "and the next time at once; what missed it is run again."
                )
            )
            environment, code = job.widen(missed)
            self._job = replace(job, environment=environment, code=code)

    def _learn(self, running: Running, stream_s: float) -> None:
        overhead_s = running.age_s - running.spent_s - stream_s
        frame_s = stream_s / max(running.frames, 1)
        self._waiting.pace = self._waiting.pace.after_task(overhead_s, frame_s)

    def _learn_memory(self, event: TaskEnded) -> None:
        self._allocation = self._allocation.after_task(event)
        needed_mb = self._allocation.learnt_mb
        if not needed_mb or self._memory_told:
            return
        cores = sum(one.slots for one in self._workers.values())
        slots = self._allocation.slots(self._workers.values())
        if slots < cores:
            self._memory_told = True
            self._observe(
                Notice(
                    f"A task is given {needed_mb} MB, by what those before it have used: "
                    f"there is memory for {slots} at a time, on {cores} cores."
                )
            )

    def _enforce_wall(self, polled_s: float) -> None:
        # what a task did while we were merging, it has not told yet
        wall_s = self._job.resources.wall_s
        if wall_s is None:
            return
        for running in self._running.values():
            if running.is_over(wall_s, polled_s) and not running.over_wall:
                running.over_wall = running.current
                self._engine.cancel(running.task.id)

    # -- handing out ---------------------------------------------------------------------------

    def _feed(self) -> None:
        slots = self._allocation.slots(self._workers.values())
        while len(self._running) < slots:
            unit_s = self._waiting.pace.unit_s or 0.0
            running_s = sum(one.left_s(unit_s) for one in self._running.values())
            chunks = self._waiting.next_task(slots, running_s)
            if not chunks:
                chunks = self._of_running_task(unit_s)
            if not chunks:
                return
            self._submit(chunks, slots)

    def _of_running_task(self, unit_s: float) -> list[Chunk]:
        """Return work for a slot that would be idle: of each chunk, the first result counts.

        All that the slowest task has not reported, or the later half of what the longest has
        before it.
        """
        tasks = self._running.values() if self._job.elsewhere else ()
        slow = [one for one in tasks if not one.copied and one.is_slow(unit_s)]
        if slow:
            slowest = min(slow, key=lambda one: one.sent_s)
            slowest.copied = True
            return [chunk for chunk in slowest.owed.values() if self._ledger.is_open(chunk.key)]
        longest = max(tasks, key=lambda one: one.left_s(unit_s), default=None)
        if longest is None:
            return []
        if not policy.is_worth_sharing(longest.left_s(unit_s), self._waiting.pace):
            return []
        return longest.share(self._ledger.is_open)

    def _submit(self, chunks: list[Chunk], slots: int) -> None:
        job = self._job
        inputs = {one.name: one for chunk in chunks for one in job.inputs(chunk)}
        task = Task(
            id=TaskId(f"{job.run_id}-{next(_task_numbers)}"),
            attempt=self._faults.attempt(chunks[0]),
            chunks=tuple(chunks),
            work=job.dumps([(chunk.key, chunk.entries, chunk.item) for chunk in chunks]),
            payload=job.payload,
            code=job.code,
            environment=job.environment,
            inputs=tuple(inputs.values()),
            resources=job.resources,
            # tasks of this machine are not placed by it
            expected_memory_mb=self._allocation.learnt_mb if job.elsewhere else None,
            frame_interval_s=policy.frame_interval_s(slots, self._waiting.pace),
            compression=job.compression,
            isolate=self._waiting.wants_isolation(chunks),
        )
        self._running[task.id] = Running(task)
        self._engine.submit(task)
        self._observe(TaskSubmitted(task.id, len(chunks), task.expected_memory_mb))

    # -- taking in -----------------------------------------------------------------------------

    def _take_frame(self, running: Running, frame: Frame) -> None:
        meta = frame.meta
        if frame.kind is Kind.HELLO:
            running.code = meta.get("code") or ""
            self._observe(TaskBegun(running.task.id))
        elif frame.kind is Kind.BEGIN:
            running.current, running.begun_s = meta["key"], time.monotonic()
            self._observe(ChunkBegun(running.task.id, meta["key"]))
        elif frame.kind is Kind.OUTPUT:
            self._take_output(running, frame)
        elif frame.kind is Kind.FAILED:
            running.bring_home(meta["exceptions"])
            if not meta["key"]:
                self._faults.refuse_payload(meta)
            if running.owed.pop(meta["key"], None) and self._ledger.is_open(meta["key"]):
                self._faults.take(meta["key"], frame)
        elif frame.kind is Kind.DONE:
            running.done = meta
            spent = {f"{name}_s": meta["clock"].get(name, 0.0) for name in _CLOCKED}
            self._observe(TaskClock(running.task.id, meta["wall_s"], **spent))

    def _take_output(self, running: Running, frame: Frame) -> None:
        begun_s = time.monotonic()
        keys, entries = frame.meta["chunks"], frame.meta["entries"]
        for key in keys:
            running.owed.pop(key, None)
        if not self._ledger.accept(keys):
            log.info("dropped a frame of %s: counted before", running.task.id)
            left = [key for key in keys if self._ledger.is_open(key)]
            self._waiting.put_back([self._ledger.chunks[key] for key in left])
            return
        error = self._output.add(frame)
        if error is not None:
            self._ledger.take_back(keys)
            self._faults.cannot_merge(keys, error)
            return
        spent_s = frame.meta["spent_s"]
        running.spent_s += spent_s
        running.frames += 1
        total = sum(policy.weight(self._ledger.chunks[key]) for key in keys)
        pace = self._waiting.pace.after_chunks(spent_s, total)
        self._waiting.pace = pace.after_merge(time.monotonic() - begun_s)
        self._faults.worked(keys)
        read_bytes = frame.meta.get("read_bytes", 0)
        self._observe(ChunksCounted(len(keys), sum(entries), len(frame.raw), read_bytes))
        self._tell_journal_failure()

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
