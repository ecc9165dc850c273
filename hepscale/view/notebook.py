"""What a notebook gets of a run whatever draws it: the texts, and the bundle that stays."""

from __future__ import annotations

import base64
import logging
from typing import TYPE_CHECKING, Any

from IPython.display import display

from hepscale.view.base import Partial, nothing
from hepscale.view.text import (
    chunks_text,
    count_text,
    duration_text,
    environment_text,
    failed_text,
    one_line,
    rate_text,
    read_text,
    received_text,
    remaining_text,
    summary_text,
    usage_text,
    workers_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from hepscale.view.gallery import Drawing, Gallery
    from hepscale.view.state import RunState

__all__ = ["LoggedView", "StaticView", "final_bundle", "finish", "payload", "show"]

_MOST_NOTICES = 5
# Known before a run begins.
_ENVIRONMENT = "Environment"
# In place of nothing, so that the others stay where they are when it becomes known.
_UNKNOWN = "-"
# IPython's display functions have no types.
show: Callable[..., Any] = display

logger = logging.getLogger(__name__)


def payload(state: RunState) -> dict[str, Any]:
    """Return what the widget shows: short texts, and the progress in per cent (0 to 100)."""
    total = f" of {count_text(state.entries_total)}" if state.counts_entries else ""
    events = count_text(state.entries_done) + total
    begun = state.started_s is not None
    facts = [
        ("Events", events if state.counts_entries or state.entries_done else ""),
        ("Rate", rate_text(state) or _UNKNOWN),
        ("Read", read_text(state)),
        ("Results", received_text(state)),
        ("Workers", workers_text(state)),
        (_ENVIRONMENT, environment_text(state)),
        ("Failures", failed_text(state)),
        ("Elapsed", duration_text(state.elapsed_s)),
        ("Remaining", remaining_text(state).removesuffix(" left") or _UNKNOWN),
        ("Each task", usage_text(state).removeprefix("a task used ")),
    ]
    return {
        "desc": one_line(state.desc, 60) or "Run",
        "percent": round(100 * state.fraction, 1),
        "chunks": chunks_text(state),
        "facts": [
            [name, value] for name, value in facts if value and (begun or name == _ENVIRONMENT)
        ],
        "notices": [one_line(text) for text in state.notices[-_MOST_NOTICES:]],
    }


def final_bundle(state: RunState, drawing: Drawing | None = None) -> dict[str, Any]:
    """Return what stays in the notebook, by media type; empty where there is nothing to say.

    Preprocessing (chunks that are files) is worth a line only if it went wrong. There is a picture
    if there are histograms, and matplotlib to draw them.
    """
    went_well = not state.chunks_failed and state.status == "done"
    if state.unit == "file" and went_well:
        return {}
    text = summary_text(state)
    if drawing is None or not drawing.plots:
        return {"text/plain": text}
    n, total = len(drawing.plots), len(drawing.plots) + len(drawing.more)
    plots = "1 plot" if total == 1 else f"{total:,} plots"
    bundle = {"text/plain": f"{text}\n  {plots}" + (f", {n} drawn" if n < total else "")}
    try:
        # seconds, if it is the first time, which only a run with something to draw is to cost
        from hepscale.view.picture import png

        bundle["image/png"] = base64.b64encode(png(drawing, text)).decode("ascii")
    except Exception as error:  # noqa: BLE001
        logger.warning("The picture of the run cannot be drawn: %r", error)
    return bundle


def finish(handle: Any, state: RunState, gallery: Gallery | None, output: Partial) -> None:
    """Put the final bundle where `handle` has shown something; None: below, if there is any."""
    bundle = final_bundle(state, _last(gallery, output))
    if handle is not None:
        handle.update(bundle, raw=True)
    elif bundle:
        show(bundle, raw=True)


class StaticView:
    """Nothing while the run goes on; the final bundle once at its end.

    Parameters
    ----------
    gallery
        Chooses the histograms; None: there are none.
    """

    def __init__(self, gallery: Gallery | None = None) -> None:
        self._gallery = gallery

    def update(self, state: RunState, output: Partial = nothing, *, force: bool = False) -> None:
        """Do nothing."""

    def close(self, state: RunState, output: Partial = nothing) -> None:
        """Display the final bundle, if there is anything to say."""
        finish(None, state, self._gallery, output)


class LoggedView:
    """Lines on stderr while the run goes on; then the final bundle, for a notebook that is kept.

    Parameters
    ----------
    gallery
        Chooses the histograms; None: there are none.
    """

    def __init__(self, gallery: Gallery | None = None) -> None:
        # rich and histoprint, which other views of notebooks do not need
        from hepscale.view.terminal import LinesView

        self._lines, self._static = LinesView(), StaticView(gallery)

    def update(self, state: RunState, output: Partial = nothing, *, force: bool = False) -> None:
        """Write a line at most every five seconds, and only if something has changed."""
        self._lines.update(state, output, force=force)

    def close(self, state: RunState, output: Partial = nothing) -> None:
        """Write how the run ended, and display the final bundle."""
        self._lines.close(state, output)
        self._static.close(state, output)


def _last(gallery: Gallery | None, output: Partial) -> Drawing | None:
    """Return the last drawing; a run is to have its text, whatever happens to its picture."""
    if gallery is None:
        return None
    try:
        return gallery.last(output())
    except Exception as error:  # noqa: BLE001
        logger.warning("The histograms of the run cannot be drawn: %r", error)
        return None
