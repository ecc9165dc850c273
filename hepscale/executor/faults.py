"""What a failure means for the chunks of a run: again, in halves, alone, or given up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepscale.errors import InputError, PayloadError
from hepscale.executor import advice, failures, policy
from hepscale.executor.task import (
    Chunk,
    ChunkFailed,
    ChunkFailure,
    ChunkKey,
    ChunkSplit,
    FailureKind,
    TaskEnded,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hepscale.executor.job import Job, Observer
    from hepscale.executor.ledger import Ledger
    from hepscale.executor.output import Output
    from hepscale.executor.running import Running
    from hepscale.executor.waiting import Waiting
    from hepscale.worker.frames import Frame

__all__ = ["Faults"]


def _refuse_unseen(chunk: Chunk, exceptions: Iterable[Mapping[str, Any]]) -> None:
    """End the run where a worker does not find a file that is here: no other chunk will do better.

    Raises
    ------
    InputError
        So it is.
    """
    path = Path(chunk.file)
    missing = any(one["type"] == "FileNotFoundError" for one in exceptions)
    if missing and path.is_absolute() and path.exists():
        raise InputError(
            "A worker does not find a file that is on this machine.",
            items=[chunk.file],
            cause="an absolute path is read where the worker is, and its machine has no such file",
            fix="give a relative path, which is sent, a URL, or a folder that all machines share",
        )


def _refuse_nested(exceptions: Iterable[Mapping[str, Any]]) -> None:
    """End the run where a task would have started another one.

    Raises
    ------
    PayloadError
        So it is.
    """
    # nothing else that a task runs raises it
    name = f"{PayloadError.__module__}.{PayloadError.__qualname__}"
    if any(one["type"] == name for one in exceptions):
        raise advice.nested_run("The analysis starts a run when it is loaded on a worker.")


class Faults:
    """Decides for each chunk that failed, and keeps the account of those given up.

    Attributes
    ----------
    failed
        The chunks that were given up.
    """

    def __init__(
        self, job: Job, ledger: Ledger, waiting: Waiting, output: Output, observer: Observer
    ) -> None:
        self.failed: list[ChunkFailure] = []
        self._job = job
        self._ledger = ledger
        self._waiting = waiting
        self._output = output
        self._observer = observer
        self._in_a_row: list[ChunkFailure] = []
        self._attempts: dict[ChunkKey, int] = {}
        # from a part to the chunk that it was once split from, and how many single events of that
        # chunk were too large, one after the other
        self._wholes: dict[ChunkKey, ChunkKey] = {}
        self._too_large: dict[ChunkKey, int] = {}
        self._files = len({chunk.file for chunk in ledger.chunks.values()})

    def attempt(self, chunk: Chunk) -> int:
        """Return the number of the next attempt at a chunk, from 1; one at its whole counts."""
        return 1 + self._attempts.get(chunk.key, 0) + (chunk.key in self._wholes)

    def worked(self, keys: Iterable[ChunkKey]) -> None:
        """Take note of chunks that were counted: failures are no longer in a row."""
        self._in_a_row.clear()
        for key in keys:
            self._too_large.pop(self._wholes.get(key, key), None)

    def stop_early(self) -> bool:
        """Whether to end the run because chunk after chunk fails in the same way."""
        return policy.stop_early(self._in_a_row, self._files)

    def cannot_merge(self, keys: Sequence[ChunkKey], error: Exception) -> None:
        """Deal with chunks whose merged output cannot be added to the others'."""
        if len(keys) > 1:
            # which of them it is shows when each comes alone
            chunks = [self._ledger.chunks[key] for key in keys]
            self._waiting.isolate(chunks)
            self._waiting.put_back(chunks)
            return
        text = " ".join(str(error).split()) or type(error).__name__
        reason = f"its output cannot be added to that of the other chunks ({text})"
        self._give_up(keys[0], "merge", reason)

    def take(self, key: ChunkKey, frame: Frame) -> None:
        """Deal with a chunk whose task reported an exception.

        Raises
        ------
        InputError
            A worker does not see a file of this machine.
        """
        chunk = self._ledger.chunks[key]
        _refuse_nested(frame.meta["exceptions"])
        failure = failures.from_frame(
            chunk, frame.meta, frame.payload, self._job.sources, self._job.wraps
        )
        # what a line of the analysis does not find is another file
        if self._job.elsewhere and not failure.where:
            _refuse_unseen(chunk, frame.meta["exceptions"])
        if failure.kind == "memory":
            if self._split(chunk):
                return
            failure = replace(failure, reason=self._too_little(failure.reason))
        self._record(key, failure)

    def refuse_payload(self, meta: Mapping[str, Any]) -> None:
        """End the run: a worker could not load what it is to run.

        Raises
        ------
        PayloadError
            Always.
        """
        told = meta["exceptions"][0]
        _refuse_nested(meta["exceptions"])
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

    def end(self, running: Running, event: TaskEnded) -> None:
        """Deal with the chunks that a task has left behind at its end."""
        left = [chunk for chunk in running.owed.values() if self._ledger.is_open(chunk.key)]
        if running.done is None:
            left = self._blame(running, event, left)
        else:
            if running.done["stopped"] == "isolate":
                self._waiting.isolate(left)
            elif not running.done["stopped"]:
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

    def _blame(self, running: Running, event: TaskEnded, left: list[Chunk]) -> list[Chunk]:
        """Deal with the chunk in which a task ended; return those that are just run again."""
        if running.over_wall and not self._ledger.is_open(running.over_wall):
            # it came to its end just before it was stopped
            return left
        if not left:
            return left
        begun = running.over_wall or running.current
        if event.status == "lost" and begun is None:
            # it had not begun anything
            return left
        culprit = next((chunk for chunk in left if chunk.key == begun), left[0])
        attempts = self._attempts[culprit.key] = self._attempts.get(culprit.key, 0) + 1
        # workers come and go: only a chunk that loses worker after worker is to blame for that
        allowed = self._job.retries
        if event.status == "lost" and allowed:
            allowed = max(allowed, policy.MOST_LOST)
        rest = [chunk for chunk in left if chunk is not culprit]
        tail = event.output_tail
        if running.over_wall:
            limit = f"did not end within {self._job.resources.wall_s:g} s"
            self._give_up(culprit.key, "wall", limit, attempts, tail)
        elif event.status == "memory":
            if not self._split(culprit):
                reason = self._too_little(event.detail)
                self._give_up(culprit.key, "memory", reason, attempts, tail)
        elif policy.may_try_again(attempts, allowed):
            self._waiting.put_alone([culprit])
        else:
            detail = event.detail or "it left without a result"
            ended = "ended" if attempts == 1 else f"ended {attempts} times"
            reason = f"its process {ended}: {detail}"
            self._give_up(culprit.key, "died", reason, attempts, tail)
        return rest

    def _too_little(self, detail: str) -> str:
        limit_mb = self._job.resources.memory_mb
        what = f"{limit_mb} MB" if limit_mb else "a worker has"
        return f"needs more than {what} ({detail})"

    def _split(self, chunk: Chunk) -> bool:
        whole = self._wholes.get(chunk.key, chunk.key)
        parts = self._job.split(chunk)
        if parts is None:
            self._too_large[whole] = self._too_large.get(whole, 0) + 1
            return False
        if not policy.may_split(self._too_large.get(whole, 0)):
            return False
        self._wholes.update({part.key: whole for part in parts})
        self._ledger.split(chunk.key, parts)
        self._output.note_split(chunk.key, [part.key for part in parts])
        self._waiting.put_alone(parts)
        self._observer.see(ChunkSplit(chunk.file, chunk.start, chunk.stop))
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
        self.failed.append(failure)
        self._in_a_row.append(failure)
        self._observer.see(ChunkFailed(failure))
