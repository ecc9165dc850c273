"""What surrounds a run: its spool folder, the view that shows it, the keys that stop it."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepscale.executor import summary
from hepscale.executor.engines import warm
from hepscale.executor.partial import PartialResults
from hepscale.executor.task import Notice, RunStarted
from hepscale.view import RunState, advance, apply, is_deaf, make_view
from hepscale.view.gallery import Gallery, encode
from hepscale.view.record import RunRecord
from hepscale.view.timeline import Timeline
from hepscale.worker import scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from hepscale.executor.job import Observer, StopRequest
    from hepscale.executor.task import Event
    from hepscale.view.gallery import Watch

__all__ = ["Watched", "shown", "spool", "stop_on_sigint", "write"]

log = logging.getLogger(__name__)


@contextmanager
def spool(parent: Path) -> Iterator[Path]:
    """Make a folder below `parent` for what the tasks of a run read; it goes with the run.

    Raises
    ------
    RunDirectoryError
        If `parent` cannot be written.
    """
    try:
        path, lock = scratch.make(str(parent))
    except OSError as error:
        raise warm.scratch_unusable(parent, error) from None
    try:
        yield Path(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def write(path: Path, data: bytes) -> None:
    """Write a file in the spool folder.

    Raises
    ------
    RunDirectoryError
        If there is no room for it.
    """
    try:
        path.write_bytes(data)
    except OSError as error:
        raise warm.scratch_unusable(path.parent.parent, error) from None


@dataclass(frozen=True)
class Watched:
    """What is done with the output of a run while it grows.

    Attributes
    ----------
    content
        Returns what the user's processor has returned, of what has been merged.
    watch
        Which histograms are drawn, see :class:`hepscale.view.gallery.Gallery`.
    on_partial, interval_s
        Is called with the output and the state, at most this often.
    folder
        The run's, for its summary.
    again
        Runs what is missing when the run has ended, and returns all of it.
    """

    content: Callable[[Any], Any]
    watch: Watch | None
    on_partial: Callable[[Any, RunState], object] | None
    interval_s: float
    folder: Path
    again: Callable[[], Any] | None = None


class _Shower:
    """Folds events into the state that a view shows."""

    def __init__(self, stop: StopRequest, status: bool, watched: Watched | None) -> None:
        self._gallery: Gallery | None = None
        self._partial: PartialResults | None = None
        self._record: RunRecord | None = None
        self._watched = watched
        self._output: Callable[[], Any] = lambda: None
        self._state, self._timeline = RunState(), Timeline()
        if watched is not None:
            self._gallery = Gallery(watched.watch, self._note)
            self._record = RunRecord(
                self._state, self._timeline, self._gallery, self._content, self._request
            )
            if watched.on_partial is not None:
                self._partial = PartialResults(watched.on_partial, watched.interval_s, self.see)
        self._stop = stop
        self._view = make_view(status, self._gallery, self._request)

    @property
    def interposers(self) -> Mapping[str, int]:
        return self._state.interposers

    def see(self, event: Event) -> None:
        now_s = time.monotonic()
        apply(self._state, event, now_s)
        self._timeline.see(event, now_s)
        if self._record is not None and isinstance(event, RunStarted):
            self._record.begin()

    def tick(self, output: Callable[[], Any] | None = None) -> None:
        self._output = output or self._output
        now_s = time.monotonic()
        advance(self._state, now_s)
        self._timeline.advance(now_s)
        if self._partial is not None:
            self._partial.tick(self._state, self._content)
        if self._state.status is None:
            self._view.update(self._state, self._content)
            self._stop.by_interrupt = is_deaf(self._view)
        if self._record is not None:
            self._record.tick()

    def close(self) -> None:
        content = plots = None
        try:
            content = self._content()
            if self._gallery is not None and content is not None:
                for text in self._gallery.missed(content):
                    self._note(text)
            plots = self._plots(content)
            if self._watched is not None and self._state.started_s is not None:
                self._summarize(self._watched.folder, plots)
            self._view.close(self._state, lambda: content)
        finally:
            # also after Ctrl-C: other threads may wait for it
            if self._record is not None:
                again = None if self._watched is None else self._watched.again
                self._record.close(content, plots, again)

    def _plots(self, content: Any) -> tuple[dict[str, Any], bytes] | None:
        if self._gallery is None or content is None:
            return None
        try:
            return encode(self._gallery.last(content), "<f8")
        except Exception as error:  # noqa: BLE001
            log.warning("The histograms of the run cannot be kept: %r", error)
            return None

    def _summarize(self, folder: Path, plots: tuple[dict[str, Any], bytes] | None) -> None:
        try:
            summary.write(folder, summary.summarize(self._state, self._timeline), plots)
        except Exception as error:
            log.debug("no summary in %s", folder, exc_info=error)
            self.see(Notice(f"hepscale report has nothing of this run: {error}"))

    def _request(self) -> None:
        self._stop.keep = True
        self._stop.requested = True

    def _content(self) -> Any:
        merged = self._output() if self._watched is not None else None
        return None if merged is None or self._watched is None else self._watched.content(merged)

    def _note(self, text: str) -> None:
        self.see(Notice(text, lasting=True))


@contextmanager
def shown(stop: StopRequest, *, status: bool, watched: Watched | None = None) -> Iterator[Observer]:
    """Yield who is to be told the events of a run, and show what comes of them.

    The view may set `stop`, in whatever thread hears its button.
    """
    shower = _Shower(stop, status, watched)
    try:
        yield shower
    finally:
        shower.close()


@contextmanager
def stop_on_sigint(stop: StopRequest) -> Iterator[None]:
    """Turn the first Ctrl-C into a stop request; the second one is a KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        # signals reach the main thread only
        yield
        return
    pressed = False

    def handle(number: int, frame: Any) -> None:
        nonlocal pressed
        # Not `stop.requested`: the view's button interrupts when it believes that it was not heard.
        if pressed:
            signal.default_int_handler(number, frame)
        stop.keep = stop.keep or stop.by_interrupt
        pressed = stop.requested = True

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
