"""Processors that fail in every way there is: each a clear error, the other chunks all kept."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from analysis import tally, where
from support import (
    BAD,
    Gate,
    broken,
    check,
    failing,
    first_chunk,
    only,
    ranges,
    run,
    tally_of,
    wait_for,
)

import hepscale

pytestmark = pytest.mark.usefixtures("settled", "nothing_left")


def test_returns_none(files):
    error = failing(only(BAD, lambda events: None), files.fileset)
    assert isinstance(error, ValueError)
    check(error, files, "exception", "return output", "no return statement")


def test_raises(files):
    def divide(events):
        nothing = 0
        return len(events) / nothing

    line = divide.__code__.co_firstlineno + 2
    error = failing(only(BAD, divide), files.fileset)
    assert isinstance(error, ZeroDivisionError)
    assert type(error.__cause__) is ZeroDivisionError
    failure = check(
        error,
        files,
        "exception",
        "ZeroDivisionError: division by zero",
        "Traceback (most recent call last, on the worker):",
        f'test_bad_processor.py", line {line}, in divide',
        "return len(events) / nothing",
        f"test_bad_processor.py:{line}",
    )
    assert failure.reason == "ZeroDivisionError: division by zero"
    assert failure.where.endswith(f":{line} in divide: return len(events) / nothing")
    assert f":{line}" in error.fix


def test_file_that_is_not_sent_along(files):
    error = failing(only(BAD, lambda events: Path("weights.json").read_text()), files.fileset)
    assert isinstance(error, FileNotFoundError)
    assert error.fix.startswith('HepScaleExecutor(files=["weights.json"]) sends it along')


def test_local_module_that_is_not_python(files, tmp_path, monkeypatch):
    (tmp_path / "unfinished.py").write_text("x = 1\ndef cut(x:\n")
    monkeypatch.syspath_prepend(tmp_path)

    def cut(events):
        import unfinished

        return unfinished.x

    error = failing(only(BAD, cut), files.fileset)
    assert isinstance(error, SyntaxError)
    assert error.fix == "correct unfinished.py, line 2, then run again"


def test_raises_an_error_with_a_cause(files):
    def wrapped(events):
        try:
            return {}["missing"]
        except KeyError as error:
            raise RuntimeError("no such correction") from error

    error = failing(only(BAD, wrapped), files.fileset)
    assert isinstance(error, RuntimeError)
    assert isinstance(error.__cause__.__cause__, KeyError)
    check(error, files, "exception", "RuntimeError: no such correction", "KeyError: 'missing'")


def test_raises_an_error_that_does_not_pickle(files):
    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    def odd(events):
        raise Odd("this", "that")

    check(
        failing(only(BAD, odd), files.fileset), files, "exception", "Odd: this and that", "in odd"
    )


def test_is_repeated_by_coffea_as_often_as_asked_for(files, tmp_path):
    def once(events):
        marker = tmp_path / f"tried-{len(os.listdir(tmp_path))}"
        marker.touch()
        if len(os.listdir(tmp_path)) < 3:
            raise OSError("a server that is busy")
        return tally(events)

    assert run(only(BAD, once), files.fileset, retries=2) == tally_of(ranges(files.good))
    assert len(os.listdir(tmp_path)) == 3


def test_calls_sys_exit(files):
    error = failing(only(BAD, lambda events: sys.exit("bye")), files.fileset)
    assert not isinstance(error, SystemExit)
    check(error, files, "exception", "SystemExit: bye", "sys.exit()", "raise an exception instead")


def test_raises_keyboard_interrupt(files):
    def interrupt(events):
        raise KeyboardInterrupt

    check(failing(only(BAD, interrupt), files.fileset), files, "exception", "KeyboardInterrupt")


def test_segfaults(files):
    error = failing(only(BAD, lambda events: ctypes.string_at(0)), files.fileset, retries=1)
    failure = check(error, files, "died", "SIGSEGV", "compiled code", "-X faulthandler")
    assert failure.attempts == 2
    assert failure.reason == "its process ended 2 times: signal 11 (SIGSEGV)"


def test_leaves_without_a_word(files):
    error = failing(only(BAD, lambda events: os._exit(0)), files.fileset)
    failure = check(error, files, "died", "it left without a result")
    assert failure.reason == "its process ended: it left without a result"


def test_what_it_printed_last_is_shown(files):
    def last_words(events):
        print("loading the corrections")
        print("no such correction", file=sys.stderr, flush=True)
        os.abort()

    check(
        failing(only(BAD, last_words), files.fileset),
        files,
        "died",
        "SIGABRT",
        "loading the corrections",
        "no such correction",
    )


@pytest.mark.parametrize("how", ["returns", "exits", "sleeps", "raises"])
def test_forks(files, how):
    def fork(events):
        pid = os.fork()
        if pid == 0:
            if how == "exits":
                os._exit(0)
            if how == "sleeps":
                time.sleep(1000)
            if how == "raises":
                raise RuntimeError("in the child")
        elif how != "sleeps":
            os.waitpid(pid, 0)
        return tally(events)

    assert run(fork, files.fileset) == tally_of(ranges(files.good))


def test_leaves_a_daemon_behind(files, tmp_path):
    def daemon(events):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                (tmp_path / str(os.getpid())).touch()
                time.sleep(1000)
            # an orphan may be ended before it has told of itself
            while not os.listdir(tmp_path):
                time.sleep(0.01)
            os._exit(0)
        while not os.listdir(tmp_path):
            time.sleep(0.01)
        return tally(events)

    assert run(only(BAD, daemon), files.fileset) == tally_of(ranges(files.good))
    (pid,) = map(int, os.listdir(tmp_path))
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"))


def test_prints_megabytes(files, capfd):
    def chatter(events):
        for _ in range(300):
            print("x" * 10_000)
        return tally(events)

    assert run(chatter, files.fileset) == tally_of(ranges(files.good))
    assert capfd.readouterr().out == ""


def test_output_that_cannot_be_pickled(files):
    def unpicklable(events):
        return {**tally(events), "tools": {"pt": {"lock": threading.Lock()}}}

    failure = check(
        failing(only(BAD, unpicklable), files.fileset),
        files,
        "output",
        "['tools']['pt']['lock']",
        "histograms, numbers, arrays",
    )
    assert "['out']" not in failure.reason


def test_every_output_cannot_be_pickled(files):
    error = failing(lambda events: {"stream": (one for one in ())}, files.fileset)
    assert {one.kind for one in error.failed} == {"output"}
    assert "['stream'] cannot be pickled" in str(error)
    assert error.fact.startswith("Stopped early")
    assert error.partial_output is None


# -- outputs that cannot be added ----------------------------------------------------------------


def test_outputs_that_cannot_be_added(files):
    def shapes(events):
        out = tally(events)
        return {**out, "h": np.zeros(2 if events.metadata["dataset"] == "a" else 3)}

    fileset = {"a": files.good[:2], "b": files.good[2:]}
    error = failing(shapes, fileset, hepscale.MergeFailed)
    assert {one.kind for one in error.failed} == {"merge"}
    assert "same axes" in error.fix
    assert "cannot be added" in str(error)
    kept = error.partial_output
    kept.pop("h")
    assert kept == tally_of(kept["chunks"])
    assert not kept["chunks"] & broken(error)
    # which of the two datasets came first is up to chance
    assert kept["chunks"] in (ranges(files.good[:2]), ranges(files.good[2:]))


def test_merge_that_fails_halfway(files):
    def halfway(events):
        bad = where(events) == BAD
        return {"ones": np.ones(2), "odd": np.zeros(5 if bad else 2), **tally(events)}

    error = failing(halfway, files.fileset, hepscale.MergeFailed)
    kept = error.partial_output
    assert kept.pop("ones").tolist() == [17, 17]
    assert kept.pop("odd").tolist() == [0, 0]
    check(error, files, "merge", "cannot be added")


def test_merge_that_fails_halfway_for_the_first_chunk(files):
    first = first_chunk(files.good)

    def halfway(events):
        bad = where(events) == first
        return {"ones": np.ones(2), "odd": np.zeros(5 if bad else 2), **tally(events)}

    error = failing(halfway, files.fileset, hepscale.MergeFailed, cores=1)
    kept = error.partial_output
    n = len(kept["chunks"])
    assert kept.pop("ones").tolist() == [n, n]
    kept.pop("odd")
    assert kept == tally_of(kept["chunks"])


# -- many ----------------------------------------------------------------------------------------


def test_chunk_after_chunk_fails_in_the_same_way(files, tmp_path):
    def fail(events):
        (tmp_path / str(where(events))).touch()
        raise RuntimeError("no correction for this year")

    error = failing(fail, files.fileset)
    assert error.fact.startswith("Stopped early, as one chunk after another fails in the same way")
    assert "no correction for this year" in str(error)
    assert 4 <= len(os.listdir(tmp_path)) <= 8
    assert 4 <= len(error.failed) <= 8
    assert f"{18 - len(error.failed)} were not tried" in error.fact


def test_bad_file_among_good_ones_does_not_stop_the_run(files):
    def fail(events):
        if where(events)[0] == "good_0.root":
            raise RuntimeError("bad file")
        return tally(events)

    error = failing(fail, files.fileset)
    assert broken(error) == ranges(files.good[:1])
    assert error.partial_output == tally_of(ranges(files.good[1:]))
    assert str(error).count("RuntimeError: bad file\n    at ") == 1
    assert "entries 30 to 40: the same" in str(error)
    assert "... and 1 more" in str(error)


def test_two_runs_at_once(files, tmp_path):
    gate = Gate(tmp_path / "gate")
    found = {}

    def waits(events):
        gate.wait()
        return tally(events)

    def other():
        found["out"] = run(waits, files.fileset)

    thread = threading.Thread(target=other)
    thread.start()
    wait_for(gate.came)
    # the one that finishes first must leave the workers of the other alone
    assert run(tally, files.fileset) == tally_of(ranges(files.good))
    error = failing(only(BAD, lambda events: 1 / 0), files.fileset)
    assert error.partial_output == tally_of(ranges(files.good) - {BAD})
    hepscale.HepScaleExecutor().close()
    gate.open()
    thread.join()
    assert found["out"] == tally_of(ranges(files.good))
