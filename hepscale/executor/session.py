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

from hepscale.errors import RunDirectoryError
from hepscale.executor.job import StopRequest
from hepscale.view import RunState, apply, make_view
from hepscale.worker import scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hepscale.executor.task import Event

__all__ = ["shown", "spool", "stop_on_sigint"]


@contextmanager
def spool(parent: Path) -> Iterator[Path]:
    """Make a folder below `parent` for what the tasks of a run read; it goes with the run.

    Raises
    ------
    RunDirectoryError
        If `parent` cannot be written, now or within the block.
    """
    path = ""
    try:
        path, lock = scratch.make(str(parent))
        try:
            yield Path(path)
        finally:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
    except OSError as error:
        if path and not str(error.filename or "").startswith(path):
            raise
        raise RunDirectoryError(
            "The scratch folder cannot be used.",
            items=[f"{parent}: {error.strerror}"],
            cause="it is missing, read-only or full",
            fix="export HEPSCALE_SCRATCH_DIR=<a folder on a local disk>",
        ) from None


@contextmanager
def shown(*, status: bool) -> Iterator[Callable[[Event], None]]:
    """Yield the function that is told the events of a run, and show what comes of them."""
    view, state = make_view(status), RunState()

    def observe(event: Event) -> None:
        apply(state, event, time.monotonic())
        view.update(state)

    try:
        yield observe
    finally:
        view.close(state)


@contextmanager
def stop_on_sigint() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C into a stop request; the second one is a KeyboardInterrupt."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        # signals reach the main thread only
        yield stop
        return

    def handle(number: int, frame: Any) -> None:
        if stop.requested:
            signal.default_int_handler(number, frame)
        stop.requested = True

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
