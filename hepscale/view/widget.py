"""A run in a notebook: one widget while it goes on, one text when it has ended.

The widget has one trait, ``run``: a small dict with texts that are ready to be shown, sent as one
message at most ten times a second from the thread that runs the cell. There is no thread of ours.

Live histograms get their place here: two more traits, ``spec`` and ``bins``, which the page draws
already (``static/board.js``), set together with ``run`` under ``hold_sync``; and ``image/png`` in
:func:`final_bundle`.

A widget does not survive saving a notebook, so the end replaces it by what does: a bundle without
times, rates and ids, which is the same when the notebook is executed again.
"""

from __future__ import annotations

import time
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import anywidget
import comm
import traitlets
from IPython.display import display

from hepscale.view.base import Throttle
from hepscale.view.text import (
    chunks_text,
    count_text,
    duration_text,
    failed_text,
    failure_lines,
    one_line,
    rate_text,
    remaining_text,
    summary_text,
    usage_text,
    workers_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from hepscale.view.state import RunState

__all__ = ["RunWidget", "StaticView", "WidgetView", "final_bundle", "payload"]

_WIDGET_S = 0.1
_MOST_NOTICES = 5
# In place of nothing, so that the others stay where they are when it becomes known.
_UNKNOWN = "-"
_VIEW_TYPE = "application/vnd.jupyter.widget-view+json"
_STATIC = files("hepscale.view") / "static"
# Joined, as a widget has one text of each: none of them imports another.
_SCRIPTS = ("scale.js", "figure.js", "board.js", "talk.js", "run.js")
_STYLES = ("run.css", "board.css")
# IPython's display functions have no types.
_display: Callable[..., Any] = display


def payload(state: RunState) -> dict[str, Any]:
    """Return what the widget shows: short texts, and the progress in per cent (0 to 100)."""
    total = f" of {count_text(state.entries_total)}" if state.counts_entries else ""
    events = count_text(state.entries_done) + total
    begun = state.started_s is not None
    facts = [
        ("Events", events if state.counts_entries or state.entries_done else ""),
        ("Rate", rate_text(state) or _UNKNOWN),
        ("Workers", workers_text(state)),
        ("Failures", failed_text(state)),
        ("Elapsed", duration_text(state.elapsed_s)),
        ("Remaining", remaining_text(state).removesuffix(" left") or _UNKNOWN),
        ("Each task", usage_text(state).removeprefix("a task used ")),
    ]
    return {
        "desc": one_line(state.desc, 60) or "Run",
        "percent": round(100 * state.fraction, 1),
        "chunks": chunks_text(state),
        "facts": [[name, value] for name, value in facts if value and begun],
        "failures": failure_lines(state),
        "notices": [one_line(text) for text in state.notices[-_MOST_NOTICES:]],
    }


def final_bundle(state: RunState) -> dict[str, Any]:
    """Return what stays in the notebook, by media type; empty where there is nothing to say.

    Preprocessing (chunks that are files) is worth a line only if it went wrong.
    """
    went_well = not state.chunks_failed and state.status == "done"
    if state.unit == "file" and went_well:
        return {}
    return {"text/plain": summary_text(state)}


def _joined(names: tuple[str, ...]) -> str:
    return "\n".join((_STATIC / name).read_text(encoding="utf-8") for name in names)


class RunWidget(anywidget.AnyWidget):
    """The widget of one run.

    Attributes
    ----------
    run
        What :func:`payload` returns.
    channel
        The comm target at which :meth:`listen` hears the page; empty where nobody listens.
    """

    _esm = _joined(_SCRIPTS)
    _css = _joined(_STYLES)
    run = traitlets.Dict().tag(sync=True)
    channel = traitlets.Unicode().tag(sync=True)

    def listen(self, hear: Callable[[dict[str, Any]], None]) -> None:
        """Pass on what the page says, until the widget is closed.

        Parameters
        ----------
        hear
            Gets each message, maybe twice, and maybe in another thread than the run's: a kernel
            that is busy with a cell hears the page in a thread of its own, if at all.
        """

        def on_message(_: object, content: Any, __: object) -> None:
            hear(content)
            self.send({"type": "heard"})

        def on_open(line: Any, message: dict[str, Any]) -> None:
            hear(message["content"]["data"])
            line.send({"type": "heard"})

        # ipykernel 7.4 answers for a comm on which the cell has sent only when the cell is over:
        # the page therefore opens a new one, to this target, for each message.
        self.channel = f"hepscale-{self.model_id}"
        comm.get_comm_manager().register_target(self.channel, on_open)
        self.on_msg(on_message)

    def close(self) -> None:
        """Close the widget, and listen no longer."""
        if self.channel:
            comm.get_comm_manager().targets.pop(self.channel, None)
        super().close()


class WidgetView:
    """One live widget, replaced by the final bundle at the end.

    Parameters
    ----------
    clock
        Returns seconds; for tests.
    stop
        Called when somebody presses the stop button, in any thread.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        stop: Callable[[], None] | None = None,
    ) -> None:
        self._stop = stop
        self._throttle = Throttle(_WIDGET_S, clock)
        self._widget: RunWidget | None = None
        self._handle: Any = None

    def update(self, state: RunState, *, force: bool = False) -> None:
        """Draw at most ten times a second; the first call shows the widget."""
        if force or self._throttle.due():
            self._throttle.draw(lambda: self._draw(state))

    def close(self, state: RunState) -> None:
        """Put the final bundle where the widget was, and close the widget."""
        bundle = final_bundle(state)
        if self._handle is not None:
            self._handle.update(bundle, raw=True)
        elif bundle:
            _display(bundle, raw=True)
        if self._widget is not None:
            self._widget.layout.close()
            self._widget.close()
        self._handle = self._widget = None

    def _draw(self, state: RunState) -> None:
        if self._widget is not None:
            self._widget.run = payload(state)
            return
        self._widget = RunWidget(run=payload(state))
        self._widget.listen(self._hear)
        view = {"version_major": 2, "version_minor": 0, "model_id": self._widget.model_id}
        # Our own text: that of the widget holds an address, which differs each time.
        shown = {_VIEW_TYPE: view, "text/plain": f"{one_line(state.desc, 60) or 'Run'}: running"}
        self._handle = _display(shown, raw=True, display_id=True)

    def _hear(self, content: dict[str, Any]) -> None:
        if content.get("type") == "stop" and self._stop is not None:
            self._stop()


class StaticView:
    """Nothing while the run goes on; the final bundle once at its end."""

    def update(self, state: RunState, *, force: bool = False) -> None:
        """Do nothing."""

    def close(self, state: RunState) -> None:
        """Display the final bundle, if there is anything to say."""
        bundle = final_bundle(state)
        if bundle:
            _display(bundle, raw=True)
