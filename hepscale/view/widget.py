"""A run in a notebook: one widget while it goes on, a picture and a text when it has ended.

The widget's state has four parts: ``run``, a small dict with texts that are ready to be shown;
``failures``, a line and more for each; ``spec``, what the histograms look like; and ``bins``, the
numbers in them (``view/gallery.py``). What has changed of them is sent as one message at most ten
times a second from the thread that runs the cell. There is no thread of ours. The page says
``{"type": "watch", "names": [...]}`` to have other histograms, ``{"type": "choose", "name": ...,
"category": ...}`` to have one category of a map, ``{"type": "stop"}`` to end the run and keep what
it has.

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
from IPython.core.getipython import get_ipython

from hepscale.view.base import Partial, Throttle, nothing
from hepscale.view.gallery import Drawing, Encoder, Gallery
from hepscale.view.notebook import finish, payload, show
from hepscale.view.tex import plain
from hepscale.view.text import failure_details, one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from hepscale.view.state import RunState

__all__ = ["RunWidget", "WidgetView"]

_WIDGET_S = 0.1
_VIEW_TYPE = "application/vnd.jupyter.widget-view+json"
_STATIC = files("hepscale.view") / "static"
# IPython's functions have no types.
_shell: Callable[[], Any] = get_ipython
# Joined, as a widget has one text of each: none of them imports another.
_SCRIPTS = ("scale.js", "figure.js", "board.js", "talk.js", "run.js")
_STYLES = ("run.css", "board.css")


def _joined(names: tuple[str, ...]) -> str:
    return "\n".join((_STATIC / name).read_text(encoding="utf-8") for name in names)


class RunWidget(anywidget.AnyWidget):
    """The widget of one run.

    Attributes
    ----------
    shown
        What its page shows: ``run``, ``failures``, ``spec`` and ``bins`` are what is returned by
        :func:`hepscale.view.notebook.payload`, :func:`hepscale.view.text.failure_details` and
        :func:`hepscale.view.gallery.encode`.
    channel
        The comm target at which :meth:`listen` hears the page; empty where nobody listens.
    """

    _esm = _joined(_SCRIPTS)
    _css = _joined(_STYLES)
    channel = traitlets.Unicode().tag(sync=True)

    def __init__(self, **shown: Any) -> None:
        # No traits: comparing and searching them takes as long as half of the message.
        self.shown: dict[str, Any] = {"run": {}, "failures": [], "spec": {}, "bins": b"", **shown}
        super().__init__()

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> dict[str, Any]:
        """Return what a page is told when it meets the widget."""
        state: dict[str, Any] = super().get_state(key, drop_defaults)
        return state if key is not None else {**state, **self.shown}

    def put(self, **changed: Any) -> None:
        """Show other parts, in one message: no page has the numbers of other histograms."""
        self.shown.update(changed)
        bins = changed.pop("bins", None)
        paths, buffers = ([], []) if bins is None else ([["bins"]], [bins])
        data = {"method": "update", "state": changed, "buffer_paths": paths}
        # none once it is closed, or if whoever has the kernel has closed it
        if self.comm is not None:
            self.comm.send(data=data, buffers=buffers)

    def listen(self, hear: Callable[[Any], None]) -> None:
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
    gallery
        Chooses the histograms; None: there are none.
    clock
        Returns seconds; for tests.
    stop
        Called when somebody presses the stop button, in any thread.

    Attributes
    ----------
    deaf
        Whether the button can be heard by an interrupt only, as in kernels before ipykernel 7. In
        others the page says hello, and is believed deaf until that is heard.
    """

    def __init__(
        self,
        gallery: Gallery | None = None,
        clock: Callable[[], float] = time.monotonic,
        stop: Callable[[], None] | None = None,
    ) -> None:
        self._gallery = gallery
        self._stop = stop
        self._throttle = Throttle(_WIDGET_S, clock)
        self._encode = Encoder(label=plain)
        self._failed = 0
        self.deaf = getattr(_shell(), "kernel", None) is not None
        self._widget: RunWidget | None = None
        self._handle: Any = None

    def update(self, state: RunState, output: Partial = nothing, *, force: bool = False) -> None:
        """Draw at most ten times a second; the first call shows the widget."""
        if self._widget is None:
            # takes as long as many updates, once
            self._show(RunWidget(run=payload(state)), state)
        if force or self._throttle.due():
            self._throttle.draw(lambda: self._draw(self._widget, state, output))

    def close(self, state: RunState, output: Partial = nothing) -> None:
        """Put the final bundle where the widget was, and close the widget."""
        finish(self._handle, state, self._gallery, output)
        if self._widget is not None:
            self._widget.layout.close()
            self._widget.close()
        self._handle = self._widget = None

    def _draw(self, widget: Any, state: RunState, output: Partial) -> int:
        drawing = self._gallery.draw(output()) if self._gallery is not None else Drawing()
        spec, bins = self._encode(drawing)
        shown, changed = widget.shown, dict[str, Any](run=payload(state))
        if len(state.failures) != self._failed:
            self._failed = len(state.failures)
            changed["failures"] = failure_details(state)
        if spec is not shown["spec"]:
            changed["spec"] = spec
        if bins != shown["bins"]:
            changed["bins"] = bins
        if changed != {"run": shown["run"]}:
            widget.put(**changed)
        return len(changed.get("bins", b""))

    def _show(self, widget: RunWidget, state: RunState) -> None:
        self._widget = widget
        widget.listen(self._hear)
        view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
        # Our own text: that of the widget holds an address, which differs each time.
        shown = {_VIEW_TYPE: view, "text/plain": f"{one_line(state.desc, 60) or 'Run'}: running"}
        self._handle = show(shown, raw=True, display_id=True)

    def _hear(self, content: Any) -> None:
        # in a thread of the kernel's while the cell runs: the run, and the next drawing, do it
        if not isinstance(content, dict):
            return
        self.deaf = False
        if content.get("type") == "stop" and self._stop is not None:
            self._stop()
        names, name = content.get("names"), content.get("name")
        if content.get("type") == "watch" and isinstance(names, list) and self._gallery:
            self._gallery.pick([name for name in names if isinstance(name, str)])
        category = content.get("category")
        known = isinstance(name, str) and isinstance(category, str | None)
        if content.get("type") == "choose" and known and self._gallery:
            self._gallery.choose(str(name), category)
