"""Decisions of the run loop, as pure functions: how large a task, whether again, when to stop.

Times are seconds. The weight of a chunk is its number of entries, or 1 where it has none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hepscale.executor.task import Chunk, ChunkFailure

__all__ = [
    "Pace",
    "frame_interval_s",
    "is_slow",
    "may_split",
    "may_try_again",
    "signature",
    "stop_early",
    "task_length",
    "weight",
]

# a task lasts at least this long, and this many times what starting it costs
LEAST_TASK_S = 0.8
LEAST_TASK_OVERHEADS = 10
# and at most this long: a slot that turns out to be slow holds up no more than this
MOST_TASK_S = 60.0
# what is left is handed out in this many rounds: a slot that is three times as slow as the others
# still ends with them
ROUNDS = 3
# and a task is at most this many times as long as what each slot has done so far: what is known
# of a few chunks is not enough to plan a long task on
GROWTH = 4
MOST_CHUNKS = 5_000
# merging may take this share of the manager's time, writing frames this share of a task's
MERGE_SHARE = 0.25
STREAM_SHARE = 0.05
# a task that streams at all writes a frame on its way and one at its end
LEAST_TASK_FRAMES = 2
# a chunk whose worker vanished so often is given up, if it may be tried again at all
MOST_LOST = 20
# a task that takes so many times as long as expected, and at least so long, gets a copy
SLOW, LEAST_SLOW_S = 2.0, 5.0
LEAST_FRAME_S, MOST_FRAME_S = 0.2, 60.0
# so many chunks that fail in the same way, one after the other, end the run
SAME_FAILURES = 4
# the pace of chunks is that of the last 20 frames, by their weight
_FORGET_FRAME = 0.05
_FORGET = 0.3


def weight(chunk: Chunk) -> int:
    """Return what the chunk is expected to cost, in units of the pace."""
    return max(chunk.entries, 1)


@dataclass(frozen=True, slots=True)
class Pace:
    """What has been learnt while running.

    Attributes
    ----------
    overhead_s
        Seconds that a task costs besides its chunks.
    merge_s
        Seconds that the manager needs to take in one frame.
    frame_s
        Seconds that a task needs to write one frame.
    learnt_s
        Seconds that chunks have taken so far, in all slots; the more, the better is `unit_s`.
    """

    overhead_s: float = 0.0
    merge_s: float = 0.0
    frame_s: float = 0.0
    learnt_s: float = 0.0
    _recent_s: float = 0.0
    _recent_weight: float = 0.0

    @property
    def unit_s(self) -> float | None:
        """Seconds for one unit of weight, None as long as nothing is known."""
        return self._recent_s / self._recent_weight if self._recent_weight else None

    def after_chunks(self, spent_s: float, total_weight: int) -> Pace:
        """Return the pace after chunks of this weight took `spent_s`."""
        keep = 1 - _FORGET_FRAME
        return replace(
            self,
            learnt_s=self.learnt_s + spent_s,
            _recent_s=keep * self._recent_s + spent_s,
            _recent_weight=keep * self._recent_weight + total_weight,
        )

    def after_task(self, overhead_s: float, frame_s: float) -> Pace:
        """Return the pace after a task that cost this much besides chunks and frames."""
        # the first tasks find a cold interpreter and cold disks: the least is nearest to the truth
        now_s = max(overhead_s, 0.0)
        is_new = not self.overhead_s or now_s < self.overhead_s
        overhead_s = now_s if is_new else _mix(self.overhead_s, now_s)
        frame_s = _mix(self.frame_s, frame_s) if self.frame_s else frame_s
        return replace(self, overhead_s=overhead_s, frame_s=frame_s)

    def after_merge(self, merge_s: float) -> Pace:
        """Return the pace after a frame took the manager this long."""
        return replace(self, merge_s=_mix(self.merge_s, merge_s) if self.merge_s else merge_s)


def _mix(old: float, new: float) -> float:
    return (1 - _FORGET) * old + _FORGET * new


def task_length(
    weights: Iterable[int], total_weight: int, running_s: float, slots: int, pace: Pace
) -> int:
    """Return how many of the next chunks make the next task.

    Parameters
    ----------
    weights
        Of the chunks that wait, in the order in which they are handed out; read as far as needed.
    total_weight
        Weight of all chunks that wait.
    running_s
        Seconds of work that the tasks which run now have still before them, added up.
    slots
        Number of slots that there are, busy ones included; at least 1.
    pace
        What has been learnt so far.

    Returns
    -------
    int
        At least 1, where a chunk waits. One chunk as long as nothing is known: the first partial
        result comes soon, and the rate is learnt. At most `MOST_CHUNKS`.
    """
    unit_s = pace.unit_s
    if unit_s is None:
        return len(list(islice(weights, 1)))
    least_s = max(
        LEAST_TASK_S,
        LEAST_TASK_OVERHEADS * pace.overhead_s,
        LEAST_TASK_FRAMES * pace.frame_s / STREAM_SHARE,
    )
    # if this slot did nothing else from now on, all slots would end together
    share_s = (total_weight * unit_s + running_s) / slots
    longest_s = min(share_s / ROUNDS, GROWTH * pace.learnt_s / slots)
    wanted_s = min(max(longest_s, least_s), share_s, MOST_TASK_S)
    length, sum_s = 0, 0.0
    for one in islice(weights, MOST_CHUNKS):
        sum_s += one * unit_s
        # half a chunk too much is better than half a chunk too little
        if length and sum_s - one * unit_s / 2 > wanted_s:
            break
        length += 1
    return length


def frame_interval_s(slots: int, pace: Pace) -> float:
    """Return the least time between two frames of a task, for both sides to keep their share."""
    wanted_s = max(slots * pace.merge_s / MERGE_SHARE, pace.frame_s / STREAM_SHARE)
    return min(max(wanted_s, LEAST_FRAME_S), MOST_FRAME_S)


def is_slow(age_s: float, expected_s: float) -> bool:
    """Whether a task has taken so long that an idle slot may as well do the same."""
    return age_s > max(SLOW * expected_s, LEAST_SLOW_S)


def is_worth_sharing(left_s: float, pace: Pace) -> bool:
    """Whether an idle slot that has nothing else takes half of what a task has before it."""
    return left_s > max(2 * LEAST_TASK_OVERHEADS * pace.overhead_s, LEAST_SLOW_S)


def may_try_again(attempts: int, retries: int) -> bool:
    """Whether a chunk whose worker died `attempts` times is run again."""
    return attempts <= retries


def may_split(too_large: int) -> bool:
    """Whether to go on splitting a chunk of which so many single events, in a row, were too large.

    If every event is too large, then a chunk of 100,000 would become as many tasks.
    """
    return too_large < SAME_FAILURES


def signature(failure: ChunkFailure) -> tuple[str, str]:
    """Return what two failures have in common that failed in the same way."""
    kind = type(failure.exceptions[-1]).__name__ if failure.exceptions else ""
    return failure.kind, failure.where or kind or failure.reason


def stop_early(failures: Sequence[ChunkFailure], files: int) -> bool:
    """Whether to stop, after these failures in a row without a chunk that worked in between.

    Several chunks of one bad file are no reason, as long as there are others.
    """
    last = failures[-SAME_FAILURES:]
    if len(last) < SAME_FAILURES or len({signature(one) for one in last}) > 1:
        return False
    return files == 1 or _several(one.file for one in last)


def _several(names: Iterable[str]) -> bool:
    return len(set(names)) > 1
