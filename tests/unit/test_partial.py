"""When `on_partial` is called."""

from __future__ import annotations

from hepscale.executor import session
from hepscale.executor.job import StopRequest
from hepscale.executor.partial import PartialResults
from hepscale.executor.task import ChunksCounted, RunEnded, RunStarted
from hepscale.view import RunState, apply
from hepscale.view.base import NullView


class Run:
    """A run of ten chunks, its clock, and what it makes of `on_partial`."""

    def __init__(self, function, interval_s=1.0):
        self.now_s, self.reads, self.told = 0.0, 0, []
        self.value = None
        self.state = RunState()
        apply(self.state, RunStarted("r", "", "chunk", 10, 10, "local", 0.0), 0.0)
        self.partial = PartialResults(function, interval_s, self.told.append, lambda: self.now_s)

    def tick(self, chunks=1, now_s=None):
        self.now_s = self.now_s if now_s is None else now_s
        if chunks:
            self.value = (self.value or 0) + chunks
            apply(self.state, ChunksCounted(chunks, 1, 1), self.now_s)
        self.partial.tick(self.state, self._read)

    def _read(self):
        self.reads += 1
        return self.value


def test_it_is_called_at_most_so_often_and_only_with_something_new():
    calls = []
    run = Run(lambda output, state: calls.append(output))
    run.tick(chunks=0)
    for i in range(21):
        run.tick(now_s=i / 10)
    assert calls == [1, 11, 21]
    assert run.reads == 3
    run.tick(chunks=0, now_s=9.0)
    assert calls == [1, 11, 21]
    run.tick(now_s=9.0)
    assert calls[3:] == [22]
    # at the end without waiting, and once
    apply(run.state, ChunksCounted(1, 1, 1), 9.1)
    apply(run.state, RunEnded("done", 0.0), 9.1)
    run.tick(chunks=0, now_s=9.1)
    run.tick(chunks=0, now_s=99.0)
    assert calls[3:] == [22, 22]


def test_the_time_between_two_calls_begins_at_the_end_of_one():
    calls = []

    def slow(output, state):
        calls.append(output)
        run.now_s += 5.0

    run = Run(slow)
    run.tick()
    run.tick(now_s=5.5)
    assert len(calls) == 1
    run.tick(now_s=6.1)
    assert len(calls) == 2


class Costly:
    """Takes half a second to copy."""

    def __init__(self, run):
        self.run = run

    def __deepcopy__(self, memo):
        self.run.now_s += 0.5
        return self


def test_copying_takes_two_per_cent_of_the_time():
    calls = []
    run = Run(lambda output, state: calls.append(run.now_s))
    run._read = lambda: Costly(run)
    for i in range(600):
        run.tick(now_s=max(run.now_s, i / 10))
    assert calls[1] - calls[0] >= 25.0


def test_what_cannot_be_copied_is_told_once():
    class Never:
        def __deepcopy__(self, memo):
            raise TypeError("no copy")

    run = Run(lambda output, state: None)
    run._read = Never
    for i in range(5):
        run.tick(now_s=10.0 * i)
    assert len(run.told) == 1
    assert run.told[0].lasting
    assert "TypeError: no copy" in run.told[0].text


def test_a_tick_without_output_keeps_what_is_drawn(monkeypatch, tmp_path):
    """As while an environment is packed in the middle of a run."""
    drawn, closed = [], []

    class Recorder(NullView):
        def update(self, state, output=None, *, force=False):
            drawn.append(output())

        def close(self, state, output=None):
            closed.append(output())

    monkeypatch.setattr(session, "make_view", lambda status, gallery, stop: Recorder())
    watched = session.Watched(lambda merged: merged["out"], ["x"], None, 1.0, tmp_path)
    with session.shown(StopRequest(), status=True, watched=watched) as observer:
        observer.tick()
        observer.tick(lambda: {"out": 3})
        observer.tick()
    assert drawn == [None, 3, 3]
    assert closed == [3]
    with session.shown(StopRequest(), status=True) as observer:
        observer.tick(lambda: {"files of coffea's own"})
    assert closed == [3, None]
