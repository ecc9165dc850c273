"""How much memory a task is given on a worker: learnt from those before it, as pure functions.

What a task is given decides how many of them a worker runs at a time. What a task may use, before
it is stopped and its chunk split, is another thing: the user's limit, or all that a worker has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from hepscale.executor.task import TaskEnded, WorkerJoined

__all__ = ["Allocation", "given_mb"]

# before so many tasks were measured nothing is known
LEAST_MEASURED = 3
# and the last ones count: later chunks may be those of another dataset
MOST_MEASURED = 100
PERCENTILE = 0.95
# the next task may need somewhat more than those before it
HEAD_ROOM = 1.25
STEP_MB = 50


@dataclass(frozen=True, slots=True)
class Allocation:
    """What has been learnt of the memory of tasks.

    Attributes
    ----------
    limit_mb
        What a task may use; None: all that a worker has.
    learnt_mb
        What a task is going to need, at most `limit_mb`; None: not known yet.
    """

    limit_mb: int | None = None
    learnt_mb: int | None = None
    _peaks_mb: tuple[float, ...] = ()

    def after_task(self, ended: TaskEnded) -> Allocation:
        """Return what is known after a task has ended; one that was not measured tells nothing."""
        # one that was cancelled might have needed more
        if ended.usage.memory_mb <= 0 or ended.status == "cancelled":
            return self
        peaks_mb = (*self._peaks_mb[1 - MOST_MEASURED :], ended.usage.memory_mb)
        if len(peaks_mb) < LEAST_MEASURED:
            return replace(self, _peaks_mb=peaks_mb)
        peak_mb = sorted(peaks_mb)[math.ceil(PERCENTILE * len(peaks_mb)) - 1]
        learnt_mb = math.ceil(peak_mb * HEAD_ROOM / STEP_MB) * STEP_MB
        return replace(
            self, learnt_mb=min(learnt_mb, self.limit_mb or learnt_mb), _peaks_mb=peaks_mb
        )

    def slots(self, workers: Collection[WorkerJoined]) -> int:
        """Return how many tasks these workers run at a time, by their cores and their memory."""
        wanted_mb = self.learnt_mb or self.limit_mb
        most_mb = max((one.memory_mb for one in workers), default=0)
        if not wanted_mb or not most_mb:
            return sum(one.slots for one in workers)
        # the largest worker takes one task in any case
        each_mb = min(wanted_mb, most_mb)
        return sum(
            min(one.slots, one.memory_mb // each_mb) if one.memory_mb else one.slots
            for one in workers
        )


def given_mb(wanted_mb: int, limit_mb: int | None, most_mb: int, attempt: int) -> int:
    """Return the memory that a task is given on a worker.

    Parameters
    ----------
    wanted_mb
        What tasks like it need, or their share of a worker as long as that is not known.
    limit_mb
        What it may use; None: all that a worker has.
    most_mb
        What the largest worker has; 0: not known.
    attempt
        Counts the tasks for the same chunk, from 1: what has failed may have lacked memory.

    Returns
    -------
    int
        At least 1, and never more than a worker has: the task would wait for ever.
    """
    # what is doubled thirty times is more than any worker has
    wanted_mb <<= min(attempt - 1, 30)
    limits_mb = [one for one in (limit_mb, most_mb) if one]
    return max(min(wanted_mb, *limits_mb) if limits_mb else wanted_mb, 1)
