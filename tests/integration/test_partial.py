"""Partial results while a run goes on: seen as they are, and never changed by who looks."""

from __future__ import annotations

import itertools
import threading
import time

import hist
import pytest
from analysis import tally, where
from coffea.nanoevents import BaseSchema
from support import BAD, ranges, run, tally_of

import hepscale
from hepscale import HepScaleExecutor, run_uproot_job

pytestmark = pytest.mark.usefixtures("settled", "nothing_left")


def expected(files):
    return tally_of(ranges(files.good))


class Seen:
    """Remembers what it is called with; cannot be pickled, as little as a figure on a screen."""

    def __init__(self):
        self.lock = threading.Lock()
        self.calls = []

    def __call__(self, output, state):
        self.calls.append((output, state, time.monotonic(), threading.get_ident()))

    def events(self):
        return [output["events"] for output, _, _, _ in self.calls]


def slow(events):
    time.sleep(0.05)
    return tally(events)


def test_partial_results_are_the_users_own_and_the_last_is_the_result(files):
    seen = Seen()
    out = run(slow, files.fileset, on_partial=seen, interval_s=0.1)
    assert out == expected(files)
    assert seen.events() == sorted(seen.events())
    assert len(seen.calls) >= 2
    last, state, _, _ = seen.calls[-1]
    assert last == out
    assert (state.status, state.chunks_done) == ("done", len(expected(files)["chunks"]))
    assert state.desc == "Processing"
    assert {ident for _, _, _, ident in seen.calls} == {threading.get_ident()}
    times = [at_s for _, _, at_s, _ in seen.calls[:-1]]
    assert all(later - at >= 0.1 for at, later in itertools.pairwise(times))


def test_what_is_given_may_be_changed(files):
    def spoil(output, state):
        output["chunks"].clear()
        output["events"] = -1
        state.chunks_done = 10_000
        state.workers.clear()
        state.failures.append("x")

    assert run(slow, files.fileset, on_partial=spoil, interval_s=0.05) == expected(files)


def test_an_exception_is_told_once_with_the_users_line(files, capfd, monkeypatch):
    monkeypatch.setenv("HEPSCALE_VIEW", "lines")
    calls = []

    def plot(output, state):
        calls.append(output)
        return output["no such histogram"]

    out = run(slow, files.fileset, on_partial=plot, interval_s=0.05, status=True)
    assert out == expected(files)
    assert len(calls) > 1
    told = [line for line in capfd.readouterr().err.splitlines() if "on_partial" in line]
    assert len(told) == 1
    assert "KeyError: 'no such histogram'" in told[0]
    assert 'return output["no such histogram"]' in told[0]


def test_the_options_are_no_part_of_what_is_resumed(files):
    def process(events):
        if where(events) == BAD:
            raise ValueError("no")
        return tally(events)

    with pytest.raises(hepscale.ChunksFailed):
        run(process, files.fileset, on_partial=Seen(), watch=["a"])
    seen = Seen()
    with pytest.raises(hepscale.ChunksFailed):
        run(process, files.fileset, resume=True, on_partial=seen, watch=dict, interval_s=9)
    assert seen.calls[-1][1].chunks_resumed == len(expected(files)["chunks"]) - 1


def test_they_are_options_of_run_uproot_job(files):
    seen = Seen()
    args = {"schema": BaseSchema, "cores": 2, "status": False}
    args |= {"on_partial": seen, "interval_s": 0.2, "watch": ["*"]}
    out = run_uproot_job(files.fileset, "Events", tally, HepScaleExecutor, args, chunksize=10)
    assert seen.calls[-1][0] == out == expected(files)


def filled(events):
    made = hist.Hist.new.Reg(4, 0, 1_000, name="x").Double()
    made.fill(events.x)
    return {"mass": made, "cuts": {"all": len(events), "none": 0}}


def test_a_pattern_in_vain_is_told_with_what_is_near(files, capfd, monkeypatch):
    monkeypatch.setenv("HEPSCALE_VIEW", "lines")
    run(filled, files.fileset, watch=["maass", "cuts"], status=True)
    told = [line for line in capfd.readouterr().err.splitlines() if "watch=" in line]
    assert told == ["  note: watch='maass' is the name of no histogram: there is 'mass'."]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"watch": "mass"}, "watch=['mass']"),
        ({"watch": 3}, "it is a list of names"),
        ({"on_partial": "plot"}, "it is a function"),
        ({"interval_s": 0}, "least number of seconds"),
    ],
)
def test_what_cannot_be_used_is_refused(option, words):
    with pytest.raises(hepscale.ConfigError) as caught:
        HepScaleExecutor(**option)
    assert words in str(caught.value)
