"""What the slots of the workers did over time: events folded into a few hundred bins.

Pure, but for the picture, which is drawn when somebody looks at it. All times given to one timeline
must come from one clock (seconds, any zero).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hepscale.executor.task import (
    Event,
    RunEnded,
    RunStarted,
    TaskBegun,
    TaskClock,
    TaskEnded,
    TaskId,
    TaskSubmitted,
    WorkerJoined,
    WorkerLost,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["KINDS", "Share", "Timeline"]

# In the order in which they are drawn, from below.
KINDS = ("processing", "merging", "streaming", "import", "environment", "lost", "waiting")
_BUSY = KINDS[:-1]
_SLOTS = "slots"
_FIRST_BIN_S = 0.05
_MOST_BINS = 400


@dataclass(frozen=True, slots=True)
class Share:
    """What the slots did, bin by bin.

    Attributes
    ----------
    bin_s
        Width of a bin, in seconds; the first begins with the run.
    span_s
        How long the run took; the last bin may be wider than what is left of that.
    kinds
        For each of :data:`KINDS` the seconds of all slots in each bin. In each bin they add up to
        the seconds for which there were slots.
    """

    bin_s: float
    span_s: float
    kinds: Mapping[str, Sequence[float]]

    @property
    def totals_s(self) -> dict[str, float]:
        """Seconds of all slots for each kind."""
        return {kind: sum(row) for kind, row in self.kinds.items()}

    @property
    def percent(self) -> dict[str, float]:
        """Part of the slots' time for each kind, in per cent; 0 where there were no slots."""
        totals_s = self.totals_s
        whole_s = sum(totals_s.values())
        return {kind: 100 * one / whole_s if whole_s else 0.0 for kind, one in totals_s.items()}


@dataclass(slots=True)
class _Open:
    """A task that has not ended."""

    sent_s: float
    begun_s: float | None = None
    clock: TaskClock | None = None


class Timeline:
    """What the slots of the workers did over time.

    A slot that has no task waits; so does one whose task is over and on its way back. A task's time
    until its first frame is "environment": files are sent and unpacked, processes started. Then it
    says itself what it spent on importing, merging and streaming. A task that ends without saying
    so is "lost", because what it had not sent is.

    However long a run is, there are at most 400 bins: they are made wider as it goes on.
    """

    def __init__(self) -> None:
        self.slots_most = 0
        self.tasks = 0
        self.tasks_memory_mb = 0.0
        self._bin_s = _FIRST_BIN_S
        self._rows: dict[str, list[float]] = {kind: [0.0] for kind in (_SLOTS, *_BUSY)}
        self._begun_s: float | None = None
        self._now_s = float("-inf")
        self._counted_s = 0.0
        self._ended = False
        self._workers: dict[str, int] = {}
        self._tasks: dict[TaskId, _Open] = {}

    def see(self, event: Event, now_s: float) -> None:
        """Fold one event."""
        self.advance(now_s)
        if isinstance(event, RunStarted):
            self._begun_s = self._counted_s = self._now_s
        elif self._begun_s is None or self._ended:
            return
        elif isinstance(event, TaskSubmitted):
            self._tasks[event.task_id] = _Open(self._now_s)
        elif isinstance(event, TaskBegun | TaskClock):
            self._told(event)
        elif isinstance(event, TaskEnded):
            self._task_ended(event)
        elif isinstance(event, WorkerJoined | WorkerLost):
            self._count_slots()
            self._workers.pop(event.worker_id, None)
            if isinstance(event, WorkerJoined):
                self._workers[event.worker_id] = event.slots
            self.slots_most = max(self.slots_most, sum(self._workers.values()))
        elif isinstance(event, RunEnded):
            self._end()

    def advance(self, now_s: float) -> None:
        """Let time pass; a time before the last one is ignored."""
        if not self._ended:
            self._now_s = max(self._now_s, now_s)

    def share(self) -> Share:
        """Return what the slots have done until now."""
        shown = self._copy()
        for one in self._tasks.values():
            shown._add_task(one, lost=False)
        shown._count_slots()
        rows, slots = shown._rows, shown._rows[_SLOTS]
        kinds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for i, there_s in enumerate(slots):
            busy_s = sum(rows[kind][i] for kind in _BUSY)
            # tasks may outnumber the slots for a while, when a worker has gone
            scale = min(1.0, there_s / busy_s) if busy_s > 0 else 0.0
            for kind in _BUSY:
                kinds[kind].append(rows[kind][i] * scale)
            kinds["waiting"].append(max(0.0, there_s - busy_s))
        span_s = 0.0 if self._begun_s is None else self._now_s - self._begun_s
        return Share(shown._bin_s, span_s, kinds)

    def __repr__(self) -> str:
        percent = {kind: round(one) for kind, one in self.share().percent.items()}
        said = [f"{kind} {one} %" for kind, one in percent.items() if one]
        return f"Timeline: {', '.join(said) or 'nothing yet'}"

    def _repr_png_(self) -> bytes | None:
        share = self.share()
        if not any(share.totals_s.values()):
            return None
        # seconds, the first time
        from hepscale.view.timeline_picture import png

        return png(share)

    # -- folding -------------------------------------------------------------------------------

    def _told(self, event: TaskBegun | TaskClock) -> None:
        one = self._tasks.get(event.task_id)
        if one is None:
            return
        if one.begun_s is None:
            one.begun_s = self._now_s
        if isinstance(event, TaskClock):
            one.clock = event

    def _task_ended(self, event: TaskEnded) -> None:
        one = self._tasks.pop(event.task_id, None)
        if one is not None:
            self._add_task(one, lost=event.status != "cancelled")
            self.tasks += 1
            self.tasks_memory_mb += event.usage.memory_mb

    def _end(self) -> None:
        for one in self._tasks.values():
            self._add_task(one, lost=False)
        self._tasks.clear()
        self._count_slots()
        self._ended = True

    def _add_task(self, one: _Open, *, lost: bool) -> None:
        """Add what a task did until now; `lost`: it has ended, and should have a clock."""
        end_s, clock = self._now_s, one.clock
        begun_s = end_s if one.begun_s is None else one.begun_s
        if clock is None:
            self._add("environment", one.sent_s, begun_s)
            self._add("lost" if lost else "processing", begun_s, end_s)
            return
        # its first frame may have come late, with the last
        begun_s = max(one.sent_s, min(begun_s, end_s - clock.wall_s))
        done_s = min(end_s, begun_s + max(clock.wall_s, 0.0))
        loaded_s = min(done_s, begun_s + max(clock.load_s, 0.0))
        self._add("environment", one.sent_s, begun_s)
        self._add("import", begun_s, loaded_s)
        left = span_s = done_s - loaded_s
        for kind, spent_s in (("merging", clock.merge_s), ("streaming", clock.stream_s)):
            part = min(max(spent_s, 0.0), left)
            left -= part
            self._add(kind, loaded_s, done_s, part / span_s if span_s > 0 else 0.0)
        self._add("processing", loaded_s, done_s, left / span_s if span_s > 0 else 0.0)

    def _count_slots(self) -> None:
        """Add the slots that there were since this was done last."""
        self._add(_SLOTS, self._counted_s, self._now_s, sum(self._workers.values()))
        self._counted_s = self._now_s

    def _add(self, kind: str, from_s: float, to_s: float, weight: float = 1.0) -> None:
        """Spread a time, `weight` times over, over the bins that it is in."""
        if self._begun_s is None or to_s <= from_s:
            return
        from_s, to_s = from_s - self._begun_s, to_s - self._begun_s
        while to_s > self._bin_s * _MOST_BINS:
            self._widen()
        bin_s, row = self._bin_s, self._rows[kind]
        first, last = int(from_s / bin_s), min(int(to_s / bin_s), _MOST_BINS - 1)
        missing = last + 1 - len(row)
        if missing > 0:
            for one in self._rows.values():
                one.extend([0.0] * missing)
        for i in range(first, last + 1):
            low_s, high_s = max(from_s, i * bin_s), min(to_s, (i + 1) * bin_s)
            row[i] += weight * max(0.0, high_s - low_s)

    def _widen(self) -> None:
        self._bin_s *= 2
        for kind, row in self._rows.items():
            even, odd = row[::2], row[1::2]
            odd += [0.0] * (len(even) - len(odd))
            self._rows[kind] = [a + b for a, b in zip(even, odd, strict=True)]

    def _copy(self) -> Timeline:
        made = Timeline()
        made._bin_s, made._begun_s = self._bin_s, self._begun_s
        made._now_s, made._counted_s = self._now_s, self._counted_s
        made._rows = {kind: row.copy() for kind, row in self._rows.items()}
        made._workers = self._workers.copy()
        return made
