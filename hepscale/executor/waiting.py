"""The chunks that wait to be handed out, and how they are put together as tasks."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from hepscale.executor import policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hepscale.executor.task import Chunk, ChunkKey

__all__ = ["Waiting"]


class Waiting:
    """A queue of chunks from which tasks are cut.

    Attributes
    ----------
    pace
        What has been learnt of the chunks so far; tasks are sized by it.
    """

    def __init__(self) -> None:
        self.pace = policy.Pace()
        self._chunks: deque[Chunk] = deque()
        self._weight = 0
        self._alone: deque[Chunk] = deque()
        self._isolated: set[ChunkKey] = set()

    def add(self, chunks: Iterable[Chunk]) -> None:
        """Append chunks."""
        for chunk in chunks:
            self._chunks.append(chunk)
            self._weight += policy.weight(chunk)

    def put_back(self, chunks: Sequence[Chunk]) -> None:
        """Prepend chunks that a task did not get to."""
        self._chunks.extendleft(reversed(chunks))
        self._weight += sum(map(policy.weight, chunks))

    def put_alone(self, chunks: Sequence[Chunk]) -> None:
        """Queue chunks that get a task each, before all others: they may take it down.

        The last ones come first: the way down to one event that is too large is then short.
        """
        self._alone.extendleft(reversed(chunks))

    def isolate(self, chunks: Iterable[Chunk]) -> None:
        """Let each of these chunks, whenever it runs, report its output on its own."""
        self._isolated.update(chunk.key for chunk in chunks)

    def wants_isolation(self, chunks: Iterable[Chunk]) -> bool:
        """Whether a task of these chunks has to report each of them on its own."""
        return any(chunk.key in self._isolated for chunk in chunks)

    def next_task(self, slots: int, running_s: float) -> list[Chunk]:
        """Take the chunks of the next task; see :func:`policy.task_length`."""
        if self._alone:
            return [self._alone.popleft()]
        weights = map(policy.weight, self._chunks)
        length = policy.task_length(weights, self._weight, running_s, slots, self.pace)
        taken = [self._chunks.popleft() for _ in range(length)]
        self._weight -= sum(map(policy.weight, taken))
        return taken
