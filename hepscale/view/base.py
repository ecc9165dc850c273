"""What a view is, which one a run gets, and the guard that keeps a broken view from harming it."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from hepscale.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hepscale.view.state import RunState

__all__ = ["GuardedView", "Mode", "NullView", "Throttle", "View", "choose_mode", "make_view"]

Mode = Literal["widget", "static", "text", "lines", "off"]

_VARIABLE = "HEPSCALE_VIEW"
_MOST_OF_TIME = 0.1

logger = logging.getLogger(__name__)


class View(Protocol):
    """Shows a run. Called from the thread that runs the cell or the script, never from another."""

    def update(self, state: RunState, *, force: bool = False) -> None:
        """Draw the state, unless something was drawn a moment ago and `force` is not set.

        A run loop calls this after each poll; a skipped call costs about a microsecond.
        """

    def close(self, state: RunState) -> None:
        """Draw how the run ended and let go of the display; more calls do nothing."""


class NullView:
    """Shows nothing."""

    def update(self, state: RunState, *, force: bool = False) -> None:
        """Do nothing."""

    def close(self, state: RunState) -> None:
        """Do nothing."""


class Throttle:
    """Says when to draw again: the last state wins, and drawing takes at most a tenth of the time.

    Parameters
    ----------
    interval_s
        Least seconds between two drawings.
    clock
        Returns seconds; for tests.
    """

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._next_s = float("-inf")

    def due(self) -> bool:
        """Whether enough time has passed since the last drawing."""
        return self._clock() >= self._next_s

    def draw(self, render: Callable[[], object]) -> None:
        """Call `render` and note what it cost."""
        begun_s = self._clock()
        render()
        cost_s = self._clock() - begun_s
        self._next_s = begun_s + max(self._interval_s, cost_s / _MOST_OF_TIME)


class GuardedView:
    """Passes calls on to a view until it fails; then logs once and is silent.

    Parameters
    ----------
    view
        The view.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._failed = False
        self._closed = False

    def update(self, state: RunState, *, force: bool = False) -> None:
        """Draw, see :meth:`View.update`."""
        if self._failed or self._closed:
            return
        try:
            self._view.update(state, force=force)
        except Exception as error:  # noqa: BLE001
            self._give_up(error)

    def close(self, state: RunState) -> None:
        """Draw the end; also after a failure, so that a terminal gets its cursor back."""
        if self._closed:
            return
        self._closed = True
        try:
            self._view.close(state)
        except Exception as error:  # noqa: BLE001
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            logger.warning("The view of the run has failed and is switched off: %r", error)
            logger.debug("The view failed here", exc_info=error)


def choose_mode(requested: str, *, asks: bool | None, tty: bool) -> Mode:
    """Return which view a run gets.

    Parameters
    ----------
    requested
        Value of ``HEPSCALE_VIEW``; empty: choose.
    asks
        Whether the front end of the kernel can ask for input: somebody is watching. False in
        nbclient, papermill and nbval; None where there is no kernel.
    tty
        Whether stderr is a terminal.

    Raises
    ------
    ConfigError
        If `requested` is not one of the modes.
    """
    modes: tuple[Mode, ...] = get_args(Mode)
    written = "text" if tty else "lines"
    if requested and requested not in modes:
        raise ConfigError(
            f"{_VARIABLE}={requested!r} is not a view.",
            items=modes,
            fix=f"unset {_VARIABLE}, or set it to one of {', '.join(modes)}",
        )
    mode: Mode | None = next((mode for mode in modes if mode == requested), None)
    if mode == "text" or (asks is None and mode in (None, "widget")):
        # A variable set for notebooks must not break scripts, nor one for terminals batch jobs.
        return "text" if written == "text" else "lines"
    if mode is not None:
        return mode
    return "widget" if asks else "static"


def make_view(status: bool, stop: Callable[[], None] | None = None) -> View:
    """Return the view for one run.

    Parameters
    ----------
    status
        Whether to show anything at all.
    stop
        What the stop button does; it may be called in any thread.

    Returns
    -------
    View
        In a notebook that somebody watches a widget; in one that is executed (nbclient, papermill,
        nbval) one text at the end; on a terminal a bar; elsewhere lines on stderr. The variable
        ``HEPSCALE_VIEW`` overrides: ``widget``, ``static``, ``text``, ``lines`` or ``off``. No
        exception leaves the view: it is logged, and the run goes on unseen.

    Raises
    ------
    ConfigError
        If ``HEPSCALE_VIEW`` has another value.
    """
    requested = os.environ.get(_VARIABLE, "").strip().lower()
    try:
        asks = _front_end_asks()
        mode = choose_mode(requested, asks=asks, tty=_is_terminal(sys.stderr))
        return GuardedView(_build(mode, stop, kernel=asks is not None)) if status else NullView()
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001
        logger.warning("No view can be made, the run goes on unseen: %r", error)
        return NullView()


def _build(mode: Mode, stop: Callable[[], None] | None, *, kernel: bool) -> View:
    # Each view imports what it draws with, which scripts and batch jobs should not pay for.
    if mode == "widget":
        from hepscale.view.widget import WidgetView

        return WidgetView(stop=stop)
    if mode == "static" and kernel:
        from hepscale.view.widget import StaticView

        return StaticView()
    if mode == "text":
        from hepscale.view.terminal import TerminalView

        return TerminalView()
    if mode in ("lines", "static"):
        from hepscale.view.terminal import LinesView

        return LinesView(only_end=mode == "static")
    return NullView()


def _front_end_asks() -> bool | None:
    ipython = sys.modules.get("IPython")
    shell: Any = ipython.get_ipython() if ipython is not None else None
    if shell is None or getattr(shell, "kernel", None) is None:
        return None
    return bool(shell.get_parent().get("content", {}).get("allow_stdin", False))


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty()) and os.environ.get("TERM", "") != "dumb"
    except (AttributeError, ValueError):
        return False
