"""`on_partial`: the user's own function, called with partial results while a run goes on."""

from __future__ import annotations

import copy
import logging
import time
import traceback
from typing import TYPE_CHECKING, Any

from hepscale.executor.task import Notice

if TYPE_CHECKING:
    from collections.abc import Callable

    from hepscale.executor.task import RunStatus
    from hepscale.view import RunState

__all__ = ["PartialResults"]

# Copying an output may take this part of the time.
_COPY_SHARE = 0.02

log = logging.getLogger(__name__)


class PartialResults:
    """Calls a function with copies of what a run has merged, and survives what it does.

    A deep copy, because a merge with nothing shares what is in it with the original.

    Parameters
    ----------
    function
        Is given the output and the state.
    interval_s
        Least seconds from the end of one call to the beginning of the next.
    tell
        Is told the first exception.
    clock
        Returns seconds; for tests.
    """

    def __init__(
        self,
        function: Callable[[Any, RunState], object],
        interval_s: float,
        tell: Callable[[Notice], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._function = function
        self._interval_s = interval_s
        self._tell = tell
        self._clock = clock
        self._next_s = float("-inf")
        self._seen: tuple[RunStatus | None, int] = (None, 0)
        self._told = False

    def tick(self, state: RunState, output: Callable[[], Any]) -> None:
        """Call the function if chunks have come in and it is time, or the run has ended."""
        seen = (state.status, state.chunks_done)
        due = state.status is not None or self._clock() >= self._next_s
        if not due or seen == self._seen or not state.chunks_done:
            return
        value = output()
        if value is None:
            return
        self._seen = seen
        begun_s = self._clock()
        copied_s = begun_s
        try:
            copies = copy.deepcopy(value), copy.deepcopy(state)
            copied_s = self._clock()
            self._function(*copies)
        except Exception as error:  # noqa: BLE001
            self._failed(error)
        wait_s = max(self._interval_s, (copied_s - begun_s) / _COPY_SHARE)
        self._next_s = self._clock() + wait_s

    def _failed(self, error: Exception) -> None:
        if self._told:
            return
        self._told = True
        log.warning("on_partial has failed", exc_info=error)
        text = f"on_partial has failed, the run goes on: {type(error).__name__}: {error}"
        self._tell(Notice(text + _line_of(error), lasting=True))


def _line_of(error: Exception) -> str:
    """Return the line that the user's function was at; the first frame is ours."""
    frames = [one for one in traceback.extract_tb(error.__traceback__)[1:] if one.line]
    own = [one for one in frames if "site-packages" not in one.filename] or frames
    return f" (in {own[-1].name}, line {own[-1].lineno}: {own[-1].line})" if own else ""
