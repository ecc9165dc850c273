"""What a view is, which one a run gets, and the guard that keeps a broken view from harming it."""

from __future__ import annotations

import logging
import os
import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args

from hepscale.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hepscale.view.gallery import Gallery
    from hepscale.view.state import RunState

__all__ = [
    "GuardedView",
    "Mode",
    "NullView",
    "Partial",
    "Throttle",
    "View",
    "build",
    "choose_mode",
    "is_deaf",
    "make_view",
    "nothing",
    "place",
]

Mode = Literal["widget", "html", "static", "text", "lines", "off"]
# Returns what the outputs that were counted add up to; None: there is nothing yet.
Partial: TypeAlias = "Callable[[], Any]"

_VARIABLE = "HEPSCALE_VIEW"
_MOST_CPU, _MOST_WALL = 0.02, 0.1
_MOST_BYTES_PER_S = 250_000

logger = logging.getLogger(__name__)


def nothing() -> None:
    """Be the output of a run that has none."""


class View(Protocol):
    """Shows a run. Called from the thread that runs the cell or the script, never from another."""

    def update(self, state: RunState, output: Partial = nothing, *, force: bool = False) -> None:
        """Draw the state, unless something was drawn a moment ago and `force` is not set.

        A run loop calls this after each poll; a skipped call costs about a microsecond, and does
        not ask for the output.
        """

    def close(self, state: RunState, output: Partial = nothing) -> None:
        """Draw how the run ended and let go of the display; more calls do nothing."""


class NullView:
    """Shows nothing."""

    def update(self, state: RunState, output: Partial = nothing, *, force: bool = False) -> None:
        """Do nothing."""

    def close(self, state: RunState, output: Partial = nothing) -> None:
        """Do nothing."""


class Throttle:
    """Says when to draw again: the last state wins, and drawing takes at most 2 % of the time.

    That is processor time; waiting for a core or for a terminal takes at most a tenth. No more than
    250 kB/s are sent, or a slow connection would show the past.

    Parameters
    ----------
    interval_s
        Least seconds between two drawings.
    clock
        Returns seconds; for tests.
    cpu_clock
        Returns the seconds for which this thread has kept a core busy; for tests.
    """

    def __init__(
        self,
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._next_s = float("-inf")
        self._last_cpu_s = 0.0

    def due(self) -> bool:
        """Whether enough time has passed since the last drawing."""
        return self._clock() >= self._next_s

    def draw(self, render: Callable[[], int | None]) -> None:
        """Call `render`, which returns the bytes that it has sent, and note what it cost."""
        begun_s, cpu_s = self._clock(), self._cpu_clock()
        sent = render() or 0
        cpu_s, wall_s = self._cpu_clock() - cpu_s, self._clock() - begun_s
        # one that was slow by chance, as the first is, is to stop nothing
        usual_s, self._last_cpu_s = min(cpu_s, self._last_cpu_s), cpu_s
        self._next_s = begun_s + max(
            self._interval_s,
            usual_s / _MOST_CPU,
            wall_s / _MOST_WALL,
            sent / _MOST_BYTES_PER_S,
        )


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

    @property
    def deaf(self) -> bool:
        """Whether the view has a button that can be heard by an interrupt only."""
        return is_deaf(self._view)

    def update(self, state: RunState, output: Partial = nothing, *, force: bool = False) -> None:
        """Draw, see :meth:`View.update`."""
        if self._failed or self._closed:
            return
        try:
            self._view.update(state, output, force=force)
        except Exception as error:  # noqa: BLE001
            self._give_up(error)

    def close(self, state: RunState, output: Partial = nothing) -> None:
        """Draw the end; also after a failure, so that a terminal gets its cursor back."""
        if self._closed:
            return
        self._closed = True
        try:
            self._view.close(state, output)
        except Exception as error:  # noqa: BLE001
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            logger.warning("The view of the run has failed and is switched off: %r", error)
            logger.debug("The view failed here", exc_info=error)


def choose_mode(requested: str, *, asks: bool | None, tty: bool, widgets: bool = True) -> Mode:
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
    widgets
        Whether anywidget is there.

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
    if mode == "text" or (asks is None and mode in (None, "widget", "html")):
        # A variable set for notebooks must not break scripts, nor one for terminals batch jobs.
        return "text" if written == "text" else "lines"
    if mode is None:
        mode = "widget" if asks else "static"
    return "html" if mode == "widget" and not widgets else mode


def make_view(
    status: bool, gallery: Gallery | None = None, stop: Callable[[], None] | None = None
) -> View:
    """Return the view for one run.

    Parameters
    ----------
    status
        Whether to show anything at all.
    gallery
        Chooses the histograms that are drawn; None: there are none.
    stop
        What the stop button does; it may be called in any thread.

    Returns
    -------
    View
        In a notebook that somebody watches a widget, or HTML without a button where anywidget is
        not there; in one that is executed (nbclient, papermill, nbval) a picture and a text at the
        end; on a terminal a bar; elsewhere lines on stderr, after which ``hepscale run`` has the
        picture, too. The variable ``HEPSCALE_VIEW`` overrides: ``widget``, ``html``, ``static``,
        ``text``, ``lines`` or ``off``. No exception leaves the view: it is logged, and the run
        goes on unseen.

    Raises
    ------
    ConfigError
        If ``HEPSCALE_VIEW`` has another value.
    """
    try:
        mode, kernel = place()
        if not status:
            return NullView()
        return GuardedView(build(mode, gallery, stop, kernel=kernel))
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001
        logger.warning("No view can be made, the run goes on unseen: %r", error)
        return NullView()


def place() -> tuple[Mode, bool]:
    """Return which view suits where this is called, and whether that is a kernel.

    Raises
    ------
    ConfigError
        If ``HEPSCALE_VIEW`` has a value that is none.
    """
    requested = os.environ.get(_VARIABLE, "").strip().lower()
    asks = _front_end_asks()
    widgets = all(map(find_spec, ("anywidget", "ipywidgets")))
    tty = _is_terminal(sys.stderr)
    return choose_mode(requested, asks=asks, tty=tty, widgets=widgets), asks is not None


def is_deaf(view: View) -> bool:
    """Whether a view has a button that can be heard by an interrupt only."""
    return bool(getattr(view, "deaf", False))


def build(
    mode: Mode, gallery: Gallery | None, stop: Callable[[], None] | None, *, kernel: bool
) -> View:
    """Return a view of this mode, see :func:`make_view`."""
    # Each view imports what it draws with, which scripts and batch jobs should not pay for.
    if mode == "widget":
        from hepscale.view.widget import WidgetView

        return WidgetView(gallery, stop=stop)
    if mode == "html":
        from hepscale.view.html import HtmlView

        return HtmlView(gallery)
    if mode == "static" and kernel:
        from hepscale.view.notebook import StaticView

        return StaticView(gallery)
    if mode == "lines" and kernel:
        from hepscale.view.notebook import LoggedView

        return LoggedView(gallery)
    if mode == "text":
        from hepscale.view.terminal import TerminalView

        return TerminalView(gallery)
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
