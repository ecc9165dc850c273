"""What is kept of a run: in this process, and beside its journal."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
import weakref

import hist
import pytest
from analysis import tally, where
from coffea.processor import ProcessorABC
from support import BAD, only, ranges, run, tally_of

import hepscale

pytestmark = pytest.mark.usefixtures("settled", "nothing_left")


def slow(events):
    time.sleep(0.05)
    return tally(events)


class Filled(dict):
    """An output that can be referred to weakly."""


def filled(events):
    made = hist.Hist.new.Reg(4, 0, 4000, name="x").Weight()
    made.fill(events.x)
    return Filled(mass=made, cuts={"all": len(events), "kept": len(events) // 2})


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_the_record_of_a_run_that_is_over(files, tmp_path, capsys):
    out = run(filled, files.fileset, run_dir=tmp_path)
    last = hepscale.last_run()
    assert last.output is out
    assert last.failed == ()
    assert (last.state.status, last.state.chunks_done) == ("done", len(ranges(files.good)))
    share = last.timeline.share()
    # two slots, from when their forkserver is up
    slots_s = [sum(bins) for bins in zip(*share.kinds.values(), strict=True)]
    up_s = share.bin_s * next(n for n, one in enumerate(slots_s, 1) if one)
    assert 2 * (share.span_s - up_s) <= sum(slots_s) + 1e-6 <= 2 * share.span_s + 2e-6
    assert share.totals_s["processing"] > 0
    assert share.totals_s["environment"] > 0
    assert share.totals_s["lost"] == 0
    bundle = last._repr_mimebundle_()
    assert set(bundle) == {"image/png", "text/plain"}
    assert "2 plots" in bundle["text/plain"]
    assert repr(last).startswith(f"<run {last.state.run_id}: Processing")
    assert "\n" not in repr(last)
    assert "resume" not in repr(last)
    last.show()
    assert "Timeline: processing" in capsys.readouterr().out


def test_only_the_last_run_is_kept(files, tmp_path):
    first = weakref.ref(run(filled, files.fileset, run_dir=tmp_path)["mass"])
    assert first() is not None
    out = run(filled, files.fileset, run_dir=tmp_path)
    gc.collect()
    assert first() is None
    assert hepscale.last_run().output is out


def test_nothing_of_the_run_but_its_output_is_kept(files, tmp_path):
    class Heavy:
        def __call__(self, output, state):
            pass

    heavy = Heavy()
    seen = weakref.ref(heavy)
    run(filled, files.fileset, run_dir=tmp_path, on_partial=heavy)
    del heavy
    gc.collect()
    assert hepscale.last_run().output
    assert seen() is None


class Halves(ProcessorABC):
    """Counts events; after all of them it says how many twice that is."""

    def __init__(self, gate):
        self.gate = gate

    def process(self, events):
        if where(events) == BAD and not self.gate.exists():
            raise ValueError("not yet")
        return tally(events)

    def postprocess(self, accumulator):
        return {**accumulator, "twice": 2 * accumulator["events"]}


def test_a_run_that_ended_early_is_gone_on_with(files, tmp_path):
    gate, runs = tmp_path / "gate", tmp_path / "runs"
    with pytest.raises(hepscale.ChunksFailed):
        run(Halves(gate), files.fileset, run_dir=runs)
    first = hepscale.last_run()
    assert "resume() runs what is missing" in repr(first)
    with pytest.raises(hepscale.ChunksFailed) as caught:
        first.resume()
    assert caught.value.partial_output == tally_of(ranges(files.good) - {BAD})
    gate.touch()
    whole = tally_of(ranges(files.good))
    assert first.resume() == {**whole, "twice": 2 * whole["events"]}
    second = hepscale.last_run()
    assert second is not first
    assert second.state.chunks_resumed == len(ranges(files.good)) - 1
    with pytest.raises(hepscale.HepScaleError, match="Nothing is missing"):
        second.resume()


def test_a_run_with_failures(files, tmp_path):
    def fail(events):
        raise ValueError("https://me:secret@host/a.root?authz=secret cannot be read")

    with pytest.raises(hepscale.ChunksFailed) as caught:
        run(only(BAD, fail), files.fileset, run_dir=tmp_path)
    last = hepscale.last_run()
    assert last.failed == tuple(caught.value.failed)
    assert last.output == tally_of(ranges(files.good) - {BAD})
    assert "resume()" in repr(last)
    found = summary(tmp_path / last.state.run_id)
    (failure,) = found["failures"]
    assert (failure["start"], failure["stop"]) == BAD[1:]
    assert failure["reason"] == "ValueError: https://host/a.root cannot be read"
    assert "secret" not in json.dumps(found)


def test_the_output_is_asked_for_while_the_run_goes_on(files, tmp_path):
    gate, found, begun = tmp_path / "gate", [], threading.Event()

    def held(events):
        if where(events) == BAD:
            while not gate.exists():
                time.sleep(0.01)
        return tally(events)

    def look():
        begun.wait(60)
        try:
            last = hepscale.last_run()
            found.append((last.state.status, last.output, last))
            last.show()
        finally:
            gate.touch()

    asker = threading.Thread(target=look)
    asker.start()
    try:
        out = run(
            held,
            files.fileset,
            run_dir=tmp_path / "runs",
            on_partial=lambda *_: begun.set(),
            interval_s=0.01,
        )
    finally:
        begun.set()
        asker.join()
    ((status, partial, last),) = found
    assert status is None
    assert 0 < partial["events"] < out["events"]
    assert BAD not in partial["chunks"]
    assert last is hepscale.last_run()
    assert last.output is out


def test_on_partial_may_ask_for_it_too(files, tmp_path):
    found = []

    def look(output, state):
        last = hepscale.last_run()
        found.append((last.output, last.output is not last.output, output))

    out = run(slow, files.fileset, run_dir=tmp_path, on_partial=look, interval_s=0.01)
    assert all(same == output and copied for same, copied, output in found)
    assert found[-1][0] == out


def test_before_any_run_it_says_what_to_do():
    code = "import hepscale; hepscale.last_run()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "InputError: No run over events has begun in this process." in done.stderr
    assert "hepscale report last" in done.stderr


def test_the_summary_is_beside_the_journal_and_goes_with_it(files, tmp_path, monkeypatch):
    monkeypatch.setenv("HEPSCALE_KEEP_RUNS", "1")
    run(filled, files.fileset, run_dir=tmp_path)
    (first,) = tmp_path.iterdir()
    found = summary(first)
    n = len(ranges(files.good))
    assert found["chunks"] == {"total": n, "done": n, "failed": 0, "resumed": 0, "split": 0}
    assert found["versions"]["hepscale"] == hepscale.__version__
    assert (found["engine"], found["status"]) == ("local", "done")
    assert found["tasks"]["memory_mb_most"] >= found["tasks"]["memory_mb_mean"] > 0
    assert {path.name for path in first.iterdir()} == {"journal", "plots.json", "summary.json"}
    run(filled, files.fileset, run_dir=tmp_path)
    (second,) = tmp_path.iterdir()
    assert second != first


def test_a_run_is_reported_by_its_id_and_by_its_folder(files, tmp_path):
    run(filled, files.fileset, run_dir=tmp_path)
    run_id = hepscale.last_run().state.run_id
    by_id, by_folder = tmp_path / "a.html", tmp_path / "b.html"
    environment = {**os.environ, "HEPSCALE_RUN_DIR": str(tmp_path)}
    for which, page in ((run_id, by_id), (str(tmp_path / run_id), by_folder)):
        code = f"from hepscale.cli import main; main(['report', {which!r}, '-o', {str(page)!r}])"
        command = [sys.executable, "-c", code]
        subprocess.run(command, check=True, env=environment, capture_output=True)
    assert by_id.read_text() == by_folder.read_text()
    assert by_id.read_text().count("data:image/png;base64,") == 2
    assert "180 of 180" in by_id.read_text()


def test_a_summary_that_cannot_be_written_is_a_note(files, tmp_path, monkeypatch):
    from hepscale.executor import summary as summaries

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(summaries, "_replace", full)
    run(filled, files.fileset, run_dir=tmp_path)
    (note,) = hepscale.last_run().state.notices
    assert "No space left on device" in note
