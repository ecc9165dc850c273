"""What surrounds a run: its spool folder, the view that shows it, the keys that stop it."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepscale.executor.engines import warm
from hepscale.view import RunState, advance, apply, make_view
from hepscale.worker import scratch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hepscale.executor.job import Observer, StopRequest
    from hepscale.executor.task import Event
    from hepscale.view import View

__all__ = ["shown", "spool", "stop_on_sigint", "write"]


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


class _Shower:
    """Folds events into the state that a view shows."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.state = RunState()

    def see(self, event: Event) -> None:
        apply(self.state, event, time.monotonic())

    def tick(self) -> None:
        advance(self.state, time.monotonic())
        self.view.update(self.state)


@contextmanager
def shown(stop: StopRequest, *, status: bool) -> Iterator[Observer]:
    """Yield who is to be told the events of a run, and show what comes of them.

    The view may set `stop`, in whatever thread hears its button.
    """

    def request() -> None:
        stop.requested = True

    shower = _Shower(make_view(status, request))
    try:
        yield shower
    finally:
        shower.view.close(shower.state)


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
        pressed = stop.requested = True

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
