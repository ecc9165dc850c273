"""Looks at a run of HepScale from outside: its events, the clocks of its tasks, its memory."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

from hepscale.executor import session
from hepscale.executor.engines.local import LocalEngine
from hepscale.executor.job import Observer, StopRequest
from hepscale.executor.task import ChunksCounted, FrameBytes, RunStarted, TaskEnded
from hepscale.worker.frames import FrameReader, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hepscale.executor.task import EngineEvent, Event

__all__ = ["Seen", "newest_journal_mb", "peak_mb", "reset_peak_mb", "watched"]


class Seen:
    """What was seen of the last run, without the one for metadata that came before it."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.counted_at: float | None = None
        self.frames = 0
        self.tasks = 0
        self.clock: dict[str, float] = {}
        self._readers: dict[str, FrameReader] = {}

    def first_frame_s(self, begun: float) -> float | None:
        """Return when the first output was counted, in seconds after `begun`."""
        return None if self.counted_at is None else self.counted_at - begun

    def observe(self, event: Event) -> None:
        """Take note of an event of the run."""
        if isinstance(event, RunStarted):
            self.clear()
        elif isinstance(event, ChunksCounted):
            self.frames += 1
            if self.counted_at is None:
                self.counted_at = time.perf_counter()

    def poll(self, events: list[EngineEvent]) -> None:
        """Take note of what the engine reported: the last frame of a task holds its clock."""
        for event in events:
            if isinstance(event, FrameBytes):
                reader = self._readers.setdefault(event.task_id, FrameReader())
                for frame in reader.feed(event.data):
                    if frame.kind is Kind.DONE:
                        self._add(frame.meta)
            elif isinstance(event, TaskEnded):
                self._readers.pop(event.task_id, None)

    def _add(self, done: dict[str, Any]) -> None:
        self.tasks += 1
        for name, spent_s in {**done["clock"], "wall": done["wall_s"]}.items():
            self.clock[name] = self.clock.get(name, 0.0) + spent_s


@contextmanager
def watched() -> Iterator[Seen]:
    """Look at the runs within the block."""
    seen, shown, poll = Seen(), session.shown, LocalEngine.poll

    @contextmanager
    def shown_and_seen(stop: StopRequest, **options: Any) -> Iterator[Observer]:
        with shown(stop, **options) as observer:
            see = observer.see

            def both(event: Event) -> None:
                seen.observe(event)
                see(event)

            with mock.patch.object(observer, "see", both):
                yield observer

    def poll_and_see(engine: LocalEngine, timeout_s: float) -> list[EngineEvent]:
        events = poll(engine, timeout_s)
        seen.poll(events)
        return events

    with (
        mock.patch.object(session, "shown", shown_and_seen),
        mock.patch.object(LocalEngine, "poll", poll_and_see),
    ):
        yield seen


def peak_mb() -> float:
    """Return the largest resident size of this process since `reset_peak_mb`, in MB."""
    return _status_mb("VmHWM")


def reset_peak_mb() -> float:
    """Forget the largest size so far; return the size now, in MB."""
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")
    return _status_mb("VmRSS")


def _status_mb(name: str) -> float:
    with open("/proc/self/status") as stream:
        line = next(line for line in stream if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6


def newest_journal_mb(run_dir: Path) -> float:
    """Return the size of the newest journal, in MB."""
    journals = sorted(run_dir.glob("*/journal"), key=lambda path: path.parent.name)
    return journals[-1].stat().st_size / 1e6
