"""The merged output stays whole when merging fails halfway."""

from __future__ import annotations

import pickle

import hist
import numpy as np
import pytest
from coffea.processor import accumulate

from hepscale.executor.journal import Journal
from hepscale.executor.output import Output
from hepscale.view.gallery import Gallery
from hepscale.worker.frames import FrameReader, Kind, encode


def frame(value, level=1):
    payload = b"" if value is None else pickle.dumps(value)
    raw = encode(Kind.OUTPUT, 0, {"chunks": ["k"], "entries": [1]}, payload, level)
    return next(FrameReader().feed(raw))


def good(n):
    mass = hist.Hist.new.Regular(4, 0, 4, name="m").Weight()
    mass.fill(m=[n % 4], weight=[n])
    return {"a": n, "list": [n], "deep": {"x": np.full(3, n)}, "mass": mass}


def bad():
    """Differs in what comes last: all else has been added when it fails."""
    return {**good(100), "mass": hist.Hist.new.Regular(9, 0, 4, name="m").Weight()}


def equal(one, other):
    return (
        (one["a"], one["list"]) == (other["a"], other["list"])
        and np.array_equal(one["deep"]["x"], other["deep"]["x"])
        and one["mass"] == other["mass"]
    )


def merged(*values):
    return accumulate(list(values))


@pytest.fixture
def log(tmp_path):
    one = Journal(tmp_path / "1", "f", "")
    yield one
    one.close()


def test_outputs_add_up_and_go_into_the_journal(log):
    output = Output(accumulate, log)
    frames = [frame(good(n)) for n in range(5)]
    assert [output.add(one) for one in frames] == [None] * 5
    assert equal(output.value, merged(*map(good, range(5))))
    assert list(log.frames())[1:] == frames


def test_merging_is_in_place_as_long_as_it_works(log):
    output = Output(accumulate, log)
    output.add(frame(good(1)))
    before = output.value
    output.add(frame(good(2)))
    assert output.value is before


@pytest.mark.parametrize("at", [1, 3])
def test_a_merge_that_fails_halfway_leaves_no_trace(log, at):
    output = Output(accumulate, log)
    for n in range(at):
        assert output.add(frame(good(n))) is None
    assert isinstance(output.add(frame(bad())), Exception)
    assert equal(output.value, merged(*map(good, range(at))))
    # and again, now that merging makes new objects
    assert output.add(frame(good(at))) is None
    kept = output.value
    assert isinstance(output.add(frame(bad())), Exception)
    assert output.value is kept
    assert equal(output.value, merged(*map(good, range(at + 1))))
    assert len(list(log.frames())) == 1 + at + 1


def test_it_does_fail_halfway_in_place():
    value = good(1)
    with pytest.raises(ValueError, match=r".+"):
        accumulate([bad()], value)
    assert value["a"] == 101


def test_without_a_journal_a_failed_merge_leaves_no_trace_either():
    output = Output(accumulate, None)
    for n in range(3):
        assert output.add(frame(good(n))) is None
    assert isinstance(output.add(frame(bad())), Exception)
    assert equal(output.value, merged(*map(good, range(3))))
    assert output.journal_failure == ""


def test_nor_when_the_journal_could_not_be_written_to_its_end(log):
    output = Output(accumulate, log)
    output.add(frame(good(1)))
    log.failed = "No space left on device"
    output.add(frame(good(2)))
    assert output.journal_failure == "No space left on device"
    assert isinstance(output.add(frame(bad())), Exception)
    assert equal(output.value, merged(good(1), good(2)))


def test_chunks_without_output(log):
    output = Output(accumulate, log)
    assert output.add(frame(None)) is None
    assert output.value is None
    output.add(frame(good(1)))
    output.add(frame(None))
    assert equal(output.value, good(1))
    assert len(list(log.frames())) == 4


def test_an_output_that_cannot_be_loaded_is_an_error_of_its_frame(log):
    output = Output(accumulate, log)
    output.add(frame(good(1)))
    raw = encode(Kind.OUTPUT, 0, {"chunks": ["k"], "entries": [1]}, b"\x80\x05no pickle")
    assert isinstance(output.add(next(FrameReader().feed(raw))), Exception)
    assert equal(output.value, good(1))
    assert len(list(log.frames())) == 2


def test_splits_are_noted(log):
    output = Output(accumulate, log)
    output.note_split("a", ["b", "c"])
    Output(accumulate, None).note_split("a", ["b", "c"])
    assert [one.kind for one in log.frames()] == [Kind.RUN, Kind.SPLIT]


def test_a_picture_drawn_after_a_failed_merge_is_of_the_whole_value(log):
    output, gallery = Output(accumulate, log), Gallery(clock=lambda: 0.0)
    for n in range(3):
        output.add(frame(good(n)))
    gallery.draw(output.whole)
    assert isinstance(output.add(frame(bad())), Exception)
    (plot,) = gallery.draw(output.whole).plots
    wanted = merged(*map(good, range(3)))["mass"]
    np.testing.assert_array_equal(plot.series[0].values, wanted.values())
    # and so are those that follow, of an object made anew each time
    output.add(frame(good(3)))
    (plot,) = gallery.draw(output.whole).plots
    assert plot.series[0].values.sum() == merged(*map(good, range(4)))["mass"].sum().value


def test_a_merge_that_is_interrupted_leaves_nothing_to_be_drawn(log):
    def interrupted(outputs, into=None):
        into["a"] += 1
        raise KeyboardInterrupt

    output = Output(interrupted, log)
    output.add(frame(good(1)))
    assert equal(output.whole, good(1))
    with pytest.raises(KeyboardInterrupt):
        output.add(frame(good(2)))
    assert output.whole is None


def test_nor_does_one_that_cannot_be_made_again(log):
    output = Output(accumulate, log)
    output.add(frame(good(1)))
    log.frames = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        output.add(frame(bad()))
    assert output.whole is None
