"""What the live view costs, in a kernel: `Live` runs there, `live_view` starts the kernel."""

from __future__ import annotations

import json
import os
import time
from statistics import median
from typing import TYPE_CHECKING, Any
from unittest import mock

import hist
import numpy as np

import hepscale
from benchmarks.report import Line
from hepscale.executor.coffea import HepScaleExecutor
from hepscale.executor.engines.local import LocalEngine
from hepscale.executor.task import ChunksCounted, FrameBytes, RunStarted
from hepscale.view.gallery import Gallery
from hepscale.view.state import RunState, apply
from hepscale.view.widget import WidgetView

if TYPE_CHECKING:
    from benchmarks.rounds import Rounds, Spread
    from hepscale.executor.task import EngineEvent

__all__ = ["live_view", "view", "within_kernel"]

_CORES, _PLOTS, _BINS, _FILLS = 2, 20, 100, 500
_CHUNK_S = 0.05
_MOST_UPDATE_MS, _MOST_SHARE, _MOST_DELAY_S = 1.0, 2.0, 1.0
_CELL = "import json; from benchmarks import live; print(json.dumps(live.within_kernel({}, {})))"


def view(rounds: Rounds, number: int, *, quick: bool) -> list[Line]:
    """Twenty histograms that fill in a notebook."""
    chunks, updates = (100, 50) if quick else (400, 200)
    for _ in range(number):
        rounds.run("live view", "view", chunks=chunks, updates=updates)
    section = f"the live view: {_PLOTS} histograms of {_BINS} bins"

    def spread(key: str) -> Spread:
        return rounds.spread("live view", lambda one: one[key])

    return [
        Line(section, "the kernel's CPU time for an update", "ms", spread("ms"), _MOST_UPDATE_MS),
        Line(section, "the same, weighted", "ms", spread("weighted_ms"), _MOST_UPDATE_MS),
        Line(section, "of the former, in the thread that runs the cell", "ms", spread("own_ms")),
        Line(section, "sent for an update", "kB", spread("kb")),
        Line(section, "updates a second of a run", "", spread("rate")),
        Line(section, "share of the manager's time", "%", spread("share"), _MOST_SHARE),
        Line(section, "frame here to update sent", "s", spread("delay_s"), _MOST_DELAY_S),
        Line(section, "the same, the longest of a run", "s", spread("longest_s")),
        Line(section, "the picture at the end", "s", spread("picture_s")),
    ]


def live_view(chunks: int, updates: int) -> dict[str, Any]:
    """Start a kernel, and measure in it."""
    import nbclient
    import nbformat

    new: Any = nbformat.v4
    document = new.new_notebook(cells=[new.new_code_cell(_CELL.format(chunks, updates))])
    # somebody watches, else there would be no widget
    with mock.patch.dict(os.environ, HEPSCALE_VIEW="widget"):
        nbclient.NotebookClient(document, timeout=600, kernel_name="python3").execute()
    printed = "".join(one.text for one in document.cells[0].outputs if one.output_type == "stream")
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return result


def within_kernel(chunks: int, updates: int) -> dict[str, Any]:
    """Measure single updates and a run, in the kernel that this is called in."""
    try:
        weighted = _updates(updates, "Weight")
        return {**_updates(updates, "Double"), "weighted_ms": weighted["ms"], **_run(chunks)}
    finally:
        # what is still running would count as others'
        hepscale.shutdown()


def _fill(item: int, storage: str = "Double") -> dict[str, Any]:
    """Return histograms of random numbers, after a while."""
    time.sleep(_CHUNK_S)
    rng = np.random.default_rng(item)
    axis = hist.axis.Regular(_BINS, 0, 1)
    return {
        f"h{n:02}": hist.Hist(axis, storage=storage).fill(rng.random(_FILLS)) for n in range(_PLOTS)
    }


def _updates(number: int, storage: str) -> dict[str, Any]:
    output, state, shown = _fill(0, storage), RunState(), WidgetView(Gallery(["*"]))
    apply(state, RunStarted("r", "Processing", "chunk", number, 0, "local", 0.0), time.monotonic())
    shown.update(state, lambda: output, force=True)
    spent_s = own_s = 0.0
    for _ in range(number):
        for one in output.values():
            one.fill([0.5])
        apply(state, ChunksCounted(1, 0, 1_000), time.monotonic())
        # of all threads: another one sends what this one has written
        begun_s, own_begun_s = time.process_time(), time.thread_time()
        shown.update(state, lambda: output, force=True)
        own_s += time.thread_time() - own_begun_s
        time.sleep(0.02)
        spent_s += time.process_time() - begun_s
    sent = len(shown._widget.shown["bins"]) + len(json.dumps(shown._widget.shown["run"]))
    shown.close(state)
    return {"ms": 1e3 * spent_s / number, "own_ms": 1e3 * own_s / number, "kb": sent / 1e3}


class _Watch:
    """Looks at a run: what its view takes, and how long a frame waits to be drawn."""

    def __init__(self) -> None:
        self.waiting_s: float | None = None
        self.delays_s: list[float] = []
        self.view_s = self.picture_s = 0.0
        self._poll, self._draw = LocalEngine.poll, WidgetView._draw
        self._update, self._close = WidgetView.update, WidgetView.close

    def poll(self, engine: LocalEngine, timeout_s: float) -> list[EngineEvent]:
        events = self._poll(engine, timeout_s)
        if self.waiting_s is None and any(isinstance(one, FrameBytes) for one in events):
            self.waiting_s = time.perf_counter()
        return events

    def update(self, shown: WidgetView, *args: Any, **options: Any) -> None:
        begun_s = time.perf_counter()
        self._update(shown, *args, **options)
        self.view_s += time.perf_counter() - begun_s

    def draw(self, shown: WidgetView, *args: Any) -> int:
        sent = self._draw(shown, *args)
        if self.waiting_s is not None:
            self.delays_s.append(time.perf_counter() - self.waiting_s)
            self.waiting_s = None
        return sent

    def close(self, shown: WidgetView, *args: Any) -> None:
        begun_s = time.perf_counter()
        self._close(shown, *args)
        self.picture_s = time.perf_counter() - begun_s


def _run(chunks: int) -> dict[str, Any]:
    executor = HepScaleExecutor(cores=_CORES, status=True, watch=["*"])
    seen = _Watch()
    # the workers are warm, as after the first run of a session
    HepScaleExecutor(cores=_CORES, status=False)(list(range(_CORES)), _fill, None)
    with (
        mock.patch.object(LocalEngine, "poll", lambda *args: seen.poll(*args)),
        mock.patch.object(WidgetView, "update", lambda *args, **more: seen.update(*args, **more)),
        mock.patch.object(WidgetView, "_draw", lambda *args: seen.draw(*args)),
        mock.patch.object(WidgetView, "close", lambda *args: seen.close(*args)),
    ):
        begun_s = time.perf_counter()
        output, error = executor(list(range(chunks)), _fill, None)
        wall_s = time.perf_counter() - begun_s - seen.picture_s
    counted = {one.sum() for one in output.values()}
    if error or counted != {float(chunks * _FILLS)}:
        raise SystemExit(f"the result is wrong: {counted}, {error}")
    return {
        "seconds": [wall_s],
        "rate": len(seen.delays_s) / wall_s,
        "share": 100 * seen.view_s / wall_s,
        "delay_s": median(seen.delays_s),
        "longest_s": max(seen.delays_s),
        "picture_s": seen.picture_s,
    }
