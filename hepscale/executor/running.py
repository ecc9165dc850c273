"""A task that an engine has, and what is known of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hepscale.executor import policy
from hepscale.worker.frames import FrameReader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hepscale.executor.task import Chunk, ChunkKey, Task

__all__ = ["Running"]


@dataclass
class Running:
    """A task from its submission to its end.

    Attributes
    ----------
    reader
        Turns the bytes of its frame file into frames.
    owed
        Its chunks that it has not reported yet, by key.
    current, begun_s
        The chunk that it began last, and when we heard of it.
    spent_s, frames
        Seconds that its reported chunks took, and the number of frames that reported them.
    done
        What its last frame says, once that has come.
    over_wall
        The chunk for which it was cancelled, as that took too long.
    code
        Where the worker has the task's code.
    copied
        Whether another slot was given all that it owes.
    shared
        Chunks at its end that another slot was given.
    """

    task: Task
    sent_s: float = field(default_factory=time.monotonic)
    reader: FrameReader = field(default_factory=FrameReader)
    current: ChunkKey | None = None
    begun_s: float = 0.0
    spent_s: float = 0.0
    frames: int = 0
    done: Mapping[str, Any] | None = None
    over_wall: ChunkKey | None = None
    code: str = ""
    copied: bool = False
    shared: set[ChunkKey] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.owed = {chunk.key: chunk for chunk in self.task.chunks}
        self._weight = sum(map(policy.weight, self.task.chunks))

    def bring_home(self, exceptions: list[dict[str, Any]]) -> None:
        """Name the files of the task's code in tracebacks as they are named here."""
        here, there = str(self.task.code), self.code
        for one in exceptions if there else ():
            one["frames"] = [
                (here + file[len(there) :] if file.startswith(f"{there}/") else file, line, name)
                for file, line, name in one["frames"]
            ]

    @property
    def age_s(self) -> float:
        """Seconds since it was submitted."""
        return time.monotonic() - self.sent_s

    def left_s(self, unit_s: float) -> float:
        """Return how many seconds of work it has still before it, at this pace."""
        return max(self._weight * unit_s - self.age_s, 0.0)

    def share(self, is_open: Callable[[ChunkKey], bool]) -> list[Chunk]:
        """Return the second half of what it has still before it, for another slot."""
        open_keys = (key for key in self.owed if key not in self.shared and is_open(key))
        keys = [key for key in open_keys if key != self.current]
        given = [self.owed[key] for key in keys[(len(keys) + 1) // 2 :]]
        self.shared.update(one.key for one in given)
        # nothing is left to be shared where nothing was given
        self._weight -= sum(map(policy.weight, given)) if given else self._weight
        return given

    def is_slow(self, unit_s: float) -> bool:
        """Whether it has taken far longer than expected."""
        return policy.is_slow(self.age_s, self._weight * unit_s)

    def is_over(self, wall_s: float, now_s: float) -> bool:
        """Whether its present chunk had taken longer than `wall_s` at the time `now_s`."""
        return self.current is not None and now_s - self.begun_s > wall_s
