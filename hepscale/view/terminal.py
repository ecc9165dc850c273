"""A run on a terminal, with rich, and in a log, as plain lines; both on stderr.

rich draws only when it is told to: it has no thread here.
"""

from __future__ import annotations

import io
import math
import sys
import time
from typing import TYPE_CHECKING, TextIO

import histoprint
import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hepscale.view.base import Partial, Throttle, nothing
from hepscale.view.text import (
    chunks_text,
    duration_text,
    environment_text,
    events_text,
    failed_text,
    failure_lines,
    final_text,
    one_line,
    progress_text,
    rate_text,
    read_text,
    remaining_text,
    workers_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from hepscale.view.gallery import Gallery
    from hepscale.view.histograms import Plot
    from hepscale.view.state import RunState

__all__ = ["LinesView", "TerminalView", "draw"]

_TERMINAL_S = 0.2
_LINES_S = 5.0
_MOST_LINES = 5
_WIDEST = 100
# A histogram is drawn below the bar if that leaves room for what else is on the terminal.
_LEAST_ROOM = 12
_LEAST_LINES, _MOST_LINES_OF_HISTOGRAM = 10, 22
_STYLES = {"done": "green", "failed": "red", "stopped": "yellow", "interrupted": "yellow"}


def draw(state: RunState, width: int = _WIDEST) -> RenderableType:
    """Return what a terminal shows of a run while it goes on.

    Parameters
    ----------
    state
        The run.
    width
        Columns of the terminal; more than 100 are not used.
    """
    desc = one_line(state.desc, 24) or "Run"
    bar = ProgressBar(
        total=1.0,
        completed=state.fraction,
        complete_style="red" if state.chunks_failed else "cyan",
        finished_style="red" if state.chunks_failed else "green",
        style="bright_black",
    )
    head = Table.grid(padding=(0, 2), expand=True)
    head.add_column(no_wrap=True)
    head.add_column(ratio=1)
    head.add_column(justify="right", no_wrap=True)
    head.add_column(justify="right", no_wrap=True)
    head.add_row(
        Text(desc, "bold"), bar, f"{math.floor(100 * state.fraction):3d} %", chunks_text(state)
    )
    room = min(width, _WIDEST) - len(desc) - 2
    lines: list[RenderableType] = [*_facts(state, room)]
    lines += [_line("x", text, "red") for text in failure_lines(state, _MOST_LINES)]
    lines += [_line("!", one_line(text), "yellow") for text in state.notices[-_MOST_LINES:]]
    body = Padding(Group(*lines), (0, 0, 0, len(desc) + 2))
    shown = Table.grid(expand=False)
    shown.add_column(width=min(width, _WIDEST))
    shown.add_row(Group(head, body))
    return shown


def _facts(state: RunState, room: int) -> list[Text]:
    environment = environment_text(state)
    about = Text(f"environment: {environment}" if environment else "", "dim")
    if state.started_s is None:
        return [about] if environment else []
    progress = [
        events_text(state),
        rate_text(state),
        f"{read} read" if (read := read_text(state)) else "",
        f"{duration_text(state.elapsed_s)} elapsed",
        remaining_text(state),
    ]
    workers = [workers_text(state), failed_text(state)]
    lines = [Text(line, "dim") for line in (*_packed(progress, room), *_packed(workers, room))]
    if state.chunks_failed:
        lines[-1].highlight_regex(r"[\d,]+ failed", "not dim red")
    return [*lines, about] if environment else lines


def _packed(parts: list[str], room: int) -> list[str]:
    """Join the parts with commas into lines of `room` columns; a part stays on one line."""
    lines: list[str] = []
    for part in filter(None, parts):
        if lines and len(lines[-1]) + len(part) + 2 < room:
            lines[-1] += f", {part}"
        else:
            lines.append(part)
    return lines


def _line(mark: str, text: str, style: str) -> Text:
    return Text(f"{mark} {text}", style, no_wrap=True, overflow="ellipsis")


class TerminalView:
    """A bar and the facts below it, redrawn in place; one line stays when the run has ended.

    Where the terminal is tall enough the first of the histograms is drawn below them.

    Parameters
    ----------
    gallery
        Chooses the histograms; None: there are none.
    console
        Where to draw; by default stderr.
    clock
        Returns seconds; for tests.
    """

    def __init__(
        self,
        gallery: Gallery | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gallery = gallery
        self._console = console or Console(stderr=True, force_jupyter=False)
        self._throttle = Throttle(_TERMINAL_S, clock)
        self._live: Live | None = None

    def update(self, state: RunState, output: Partial = nothing, *, force: bool = False) -> None:
        """Draw at most five times a second."""
        if force or self._throttle.due():
            self._throttle.draw(lambda: self._draw(state, output))

    def close(self, state: RunState, output: Partial = nothing) -> None:
        """Replace the bar by one line, below what else is to be known."""
        if self._live is not None:
            # what had not been due: a bar in a recording is not to end short of its end
            self._draw(state, output)
            self._live.stop()
            self._live = None
        for text in state.lasting:
            self._console.print(_line("!", one_line(text), "yellow"), soft_wrap=True)
        style = _STYLES.get(state.status or "", "yellow")
        what, _, rest = final_text(state).partition(":")
        line = Text.assemble((what, f"bold {style}"), ":", rest)
        self._console.print(line, soft_wrap=True, highlight=False)

    def _draw(self, state: RunState, output: Partial) -> None:
        if self._live is None:
            # What is printed to the same terminal then appears above the bar; what goes to a file
            # is not touched.
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=sys.stderr.isatty(),
            )
            self._live.start()
        shown: RenderableType = draw(state, self._console.width)
        room = self._console.height - _LEAST_ROOM
        if self._gallery is not None and room >= _LEAST_LINES:
            plots = self._gallery.draw(output()).plots
            steps = next((plot for plot in plots if plot.kind == "steps" and plot.summable), None)
            if steps is not None:
                width = min(self._console.width, _WIDEST) - 1
                lines = min(room, _MOST_LINES_OF_HISTOGRAM)
                shown = Group(shown, _histogram(steps, width, lines))
        self._live.update(shown, refresh=True)


def _histogram(plot: Plot, width: int, lines: int) -> Text:
    """Return the sum of a plot's series as a histogram that lies on its side."""
    total = np.nan_to_num(sum(one.values for one in plot.series), posinf=0.0, neginf=0.0)
    if plot.x is None or not np.any(total > 0):
        return Text()
    edges = np.arange(len(total) + 1) if plot.x.edges is None else np.array(plot.x.edges)
    starts = np.arange(0, len(total), -(-len(total) // (lines - 3)))
    total = np.add.reduceat(np.maximum(total, 0.0), starts)
    made = io.StringIO()
    histoprint.print_hist(
        (total, np.append(edges[starts], edges[-1])),
        file=made,
        lines=lines - 1,
        columns=width,
        title=one_line(plot.name, width - 2),
        use_color=False,
    )
    return Text.from_ansi(made.getvalue().rstrip(), no_wrap=True, overflow="crop")


class LinesView:
    """A line every five seconds if something has changed, one for each notice, one at the end.

    Parameters
    ----------
    stream
        Where to write; by default stderr as it is at the time of writing.
    only_end
        Write nothing but the last line.
    clock
        Returns seconds; for tests.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        only_end: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._only_end = only_end
        self._throttle = Throttle(_LINES_S, clock)
        self._throttle.draw(lambda: None)
        self._shown: tuple[int, ...] = ()
        self._failures = 0
        self._notices = 0

    def update(
        self,
        state: RunState,
        output: Partial = nothing,  # noqa: ARG002
        *,
        force: bool = False,
    ) -> None:
        """Write a line at most every five seconds, and only if something has changed."""
        if self._only_end or not (force or self._throttle.due()):
            return
        shown = (
            state.chunks_done,
            state.chunks_failed,
            state.chunks_total,
            state.slots,
            state.tasks_retried,
            len(state.notices),
            state.environment.packed_bytes,
            state.environment.layers,
        )
        # Without a change no interval begins, so that the next change is told at once.
        if shown != self._shown:
            self._shown = shown
            self._throttle.draw(lambda: self._draw(state))

    def close(self, state: RunState, output: Partial = nothing) -> None:  # noqa: ARG002
        """Write how the run ended."""
        if not self._only_end:
            self._extras(state)
        self._write([final_text(state)])

    def _draw(self, state: RunState) -> None:
        self._extras(state)
        self._write([progress_text(state)])

    def _extras(self, state: RunState) -> None:
        lines = [f"  note: {one_line(text)}" for text in state.notices[self._notices :]]
        self._notices = len(state.notices)
        failures = failure_lines(state, _MOST_LINES)[:_MOST_LINES]
        lines += [f"  failed: {text}" for text in failures[self._failures :]]
        self._failures = len(failures)
        self._write(lines)

    def _write(self, lines: list[str]) -> None:
        if lines:
            stream = self._stream or sys.stderr
            stream.write("".join(f"{line}\n" for line in lines))
            stream.flush()
