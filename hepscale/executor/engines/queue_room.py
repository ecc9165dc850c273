"""Notices that there are workers, but none that a library gives the tasks of a run to."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hepscale.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Collection

    from hepscale.executor.engines.queue import QueueTask, QueueWorkerJoined

__all__ = ["Room"]

# no library takes so long to hand out a task for which a worker has room
_PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class _Size:
    """What a task asks for, or a worker has."""

    cores: int
    memory_mb: int
    disk_mb: int

    @classmethod
    def asked(cls, task: QueueTask) -> _Size:
        """Return what a task asks for; its files need room too."""
        size = sum(one.local.stat().st_size for one in task.inputs if one.local.is_file())
        return cls(task.cores, task.memory_mb, task.disk_mb + math.ceil(size / 1e6))

    def lacks(self, asked: _Size) -> list[str]:
        """Return of what there is too little here."""
        return [one for one in _CURES if getattr(self, one) < getattr(asked, one)]

    def __str__(self) -> str:
        cores = f"{self.cores} core{'s' if self.cores != 1 else ''}"
        return f"{cores}, {self.memory_mb} MB of memory, a disk of {self.disk_mb} MB"


_CURES = {
    "disk_mb": (
        "environment and files of a task do not fit on the disk of a worker",
        "Workers(..., workdir=<a folder with room>); df -h there shows what is free",
    ),
    "memory_mb": (
        "a task is given more memory than a worker has",
        "Workers(..., memory_mb={asked.memory_mb})",
    ),
    "cores": ("a worker has fewer cores than a task needs", "Workers(..., cores={asked.cores})"),
}
_OTHERWISE = (
    "other tasks, or files that are kept for them, take what the workers have",
    "hepscale.shutdown(), and run again with new workers",
)


class Room:
    """Knows for how long all workers of a run have been without a task, though there were some."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._told = False

    def check(
        self, workers: Collection[QueueWorkerJoined], tasks: Collection[QueueTask], *, own: bool
    ) -> str:
        """Return what there is to say, once when that has lasted; "" else.

        Parameters
        ----------
        workers
            Those that are there.
        tasks
            Those of the run if they all wait; none if a worker has one.
        own
            Whether this process started the workers: no larger one is going to come then.

        Raises
        ------
        EngineError
            If that has lasted, and the workers are its own.
        """
        if not workers or not tasks:
            self._since_s, self._told = None, False
            return ""
        now = time.monotonic()
        self._since_s = self._since_s or now
        if self._told or now - self._since_s < _PATIENCE_S:
            return ""
        self._told = True
        asked = _Size.asked(next(iter(tasks)))
        sizes = (_Size(one.cores, one.memory_mb, one.disk_mb) for one in workers)
        largest = min(sizes, key=lambda one: (len(one.lacks(asked)), -one.disk_mb))
        items = [f"a task asks for {asked}", f"the largest worker has {largest}"]
        if not own:
            return f"No worker has room for what a task needs: {items[0]}; {items[1]}."
        lacks = largest.lacks(asked)
        cause, fix = _CURES[lacks[0]] if lacks else _OTHERWISE
        raise EngineError(
            "No worker has room for what a task needs.",
            items=items,
            cause=cause,
            fix=fix.format(asked=asked),
        )
