"""Notices that there are workers, but none that a library gives the tasks of a run to."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from hepscale.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Collection

    from hepscale.executor.engines.queue import QueueWorkerJoined

__all__ = ["Room"]

# no library takes so long to hand out a task for which a worker has room
_PATIENCE_S = 20.0


class Room:
    """Knows for how long all workers of a run have been without a task, though there were some."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    def check(
        self, workers: Collection[QueueWorkerJoined], places: Collection[str], *, own: bool
    ) -> str:
        """Return what there is to say, once that has lasted; "" else.

        Parameters
        ----------
        workers
            Those that are there.
        places
            For each task of the run the worker that it was given to, "" where it waits.
        own
            Whether this process started the workers: no larger one is going to come then.

        Raises
        ------
        EngineError
            If that has lasted, and the workers are its own.
        """
        if not workers or not places or any(places):
            self._since_s = None
            return ""
        now = time.monotonic()
        self._since_s = self._since_s or now
        if now - self._since_s < _PATIENCE_S:
            return ""
        sizes = sorted({(one.disk_mb, one.memory_mb, one.cores) for one in workers})
        items = [
            f"a disk of {disk_mb} MB, {memory_mb} MB of memory, {cores} cores"
            for disk_mb, memory_mb, cores in sizes
        ]
        if not own:
            return f"No worker has room for what a task needs: {items[-1]} is the largest."
        raise EngineError(
            "No worker has room for what a task needs.",
            items=items,
            cause="environment and files of a task do not fit on the disk of a worker",
            fix="Workers(..., workdir=<a folder with room>); df -h there shows what is free",
        )
