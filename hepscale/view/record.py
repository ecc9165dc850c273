"""What is kept of the newest run of this process, for whoever comes back to it."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from hepscale.errors import InputError
from hepscale.view.base import GuardedView, View, build, nothing, place
from hepscale.view.gallery import decode
from hepscale.view.text import failure_lines, final_text, progress_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from hepscale.executor.task import ChunkFailure
    from hepscale.view.base import Partial
    from hepscale.view.gallery import Gallery
    from hepscale.view.state import RunState
    from hepscale.view.timeline import Timeline

__all__ = ["RunRecord", "last_run"]

_newest: list[RunRecord] = []


class RunRecord:
    """A run, while it goes on and when it is over; :func:`hepscale.last_run` returns it.

    Attributes
    ----------
    state
        Where the run stands, a :class:`hepscale.view.RunState`.
    timeline
        What the workers' slots did, a :class:`hepscale.view.timeline.Timeline`: a picture where
        the notebook shows it, and ``timeline.share()`` has the numbers.
    """

    def __init__(
        self,
        state: RunState,
        timeline: Timeline,
        gallery: Gallery,
        content: Partial,
        stop: Callable[[], None],
    ) -> None:
        self.state = state
        self.timeline = timeline
        # let go of when the run is over: they hold what the run held
        self._live: tuple[Gallery, Partial, Callable[[], None]] | None = (gallery, content, stop)
        self._output: Any = None
        self._again: Callable[[], Any] | None = None
        self._plots: tuple[dict[str, Any], bytes] | None = None
        self._views: list[View] = []
        self._asked: list[Future[Any]] = []
        self._lock = threading.Lock()
        self._thread = threading.get_ident()

    @property
    def failed(self) -> tuple[ChunkFailure, ...]:
        """The chunks that were given up until now."""
        return tuple(self.state.failures)

    @property
    def output(self) -> Any:
        """The merged output; None where there is none.

        While the run goes on it is a copy of what has been merged; afterwards what the run has
        returned, before the processor's ``postprocess``.
        """
        with self._lock:
            if self._live is None:
                return self._output
            if threading.get_ident() != self._thread:
                # nobody else reads what the run's thread is merging
                asked: Future[Any] = Future()
                self._asked.append(asked)
            else:
                return copy.deepcopy(self._live[1]())
        return asked.result()

    def resume(self) -> Any:
        """Go on with a run that has ended early, in a run of its own, and return all of it.

        It runs the same chunks with the same executor and the processor as it was when the run
        began. What is in the run's journal is counted, unless local modules that the processor
        uses, or installed packages, were changed since; a notice says so. Options of coffea's
        ``Runner`` for failures (``skipbadfiles``, ``savemetrics``) have no effect here.

        Returns
        -------
        object
            The merged output, after the processor's ``postprocess``.

        Raises
        ------
        InputError
            If the run goes on, or nothing is missing.
        RunError
            If this one ends early too; ``partial_output`` has what was counted.
        """
        if self.state.status is None:
            raise InputError(
                f"The run {self.state.run_id} has not ended.", fix="hepscale.last_run().show()"
            )
        if self._again is None:
            raise InputError(
                f"Nothing is missing of the run {self.state.run_id}.",
                fix="hepscale.last_run().output",
            )
        return self._again()

    def show(self) -> None:
        """Show how the run went; while it goes on, where it stands.

        In a notebook that is the live view, if the run goes on in another thread, and else the
        picture and the text that the run has left. A page that was loaded again meanwhile is
        answered by its kernel when the cell of the run is over: a cell with ``show()`` waits, and
        gets the picture. Live it is in a subshell console of JupyterLab that was opened before.
        """
        mode, kernel = place()
        with self._lock:
            live = self._live
        if live is not None and mode in ("widget", "html"):
            gallery, _, stop = live
            view = GuardedView(build(mode, gallery, stop, kernel=kernel))
            # shown by the cell that asks, and from then on drawn by the run's thread
            view.update(self.state, nothing, force=True)
            with self._lock:
                if self._live is not None:
                    self._views.append(view)
                    return
            view.close(self.state)
        if kernel:
            from IPython.display import display

            display(self)  # type: ignore[no-untyped-call]
        else:
            print("\n".join(self._lines()))

    def begin(self) -> None:
        """Become what :func:`last_run` returns; called by the run."""
        _newest[:] = [self]

    def tick(self) -> None:
        """Give others what they have asked for; called by the run's thread."""
        if not (self._asked or self._views) or self._live is None:
            return
        content = self._live[1]
        with self._lock:
            views, asked = self._views.copy(), self._asked.copy()
            self._asked.clear()
        for view in views:
            view.update(self.state, content)
        for one in asked:
            _answer(one, content)

    def close(
        self,
        output: Any,
        plots: tuple[dict[str, Any], bytes] | None,
        again: Callable[[], Any] | None = None,
    ) -> None:
        """Keep how the run has ended, and nothing else of it; called by the run's thread.

        Parameters
        ----------
        output
            What was merged.
        plots
            What is drawn of it, see :func:`hepscale.view.gallery.encode`.
        again
            Runs what is missing; it is kept only where something is.
        """
        if self.state.status != "done":
            self._again = again
        with self._lock:
            self._live, self._output, self._plots = None, output, plots
            views, asked = self._views, self._asked
            self._views, self._asked = [], []
        for view in views:
            view.close(self.state, lambda: output)
        for one in asked:
            one.set_result(output)

    def _lines(self) -> list[str]:
        text = progress_text(self.state) if self.state.status is None else final_text(self.state)
        return [text, *(f"  {line}" for line in failure_lines(self.state)), repr(self.timeline)]

    def __repr__(self) -> str:
        state = self.state
        if state.status is None:
            return f"<run {state.run_id}: {progress_text(state)}>"
        done = state.status == "done"
        rest = "" if done else "; resume() runs what is missing"
        return f"<run {state.run_id}: {final_text(state)}{rest}>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        if self.state.status is None:
            return {"text/plain": repr(self)}
        from hepscale.view.notebook import final_bundle

        drawing = None if self._plots is None else decode(*self._plots)
        return final_bundle(self.state, drawing)


def last_run() -> RunRecord:
    """Return the newest run over events that was begun in this process.

    Returns
    -------
    RunRecord
        With ``show()``, ``resume()``, ``output``, ``failed``, ``state`` and ``timeline``. It keeps
        the run's output in memory until the next run begins, and of a run that has ended early
        also what it was called with.

    Raises
    ------
    InputError
        If there was none.
    """
    if not _newest:
        raise InputError(
            "No run over events has begun in this process.",
            fix="hepscale report last, for the newest of another process",
        )
    return _newest[-1]


def _answer(asked: Future[Any], content: Partial) -> None:
    try:
        asked.set_result(copy.deepcopy(content()))
    except Exception as error:  # noqa: BLE001
        # what a user's own accumulator raises when it is copied, is for who asked
        asked.set_exception(error)
