"""Coffea itself on workers that are killed, or lack a file: bins equal `IterativeExecutor`'s."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import analysis
import crew as crews
import elsewhere
import equal_analysis
import hist
import numpy as np
import ports
import pytest
import queues
import support
from coffea.nanoevents import BaseSchema
from coffea.processor import IterativeExecutor, Runner
from crew import meanwhile

import hepscale
from hepscale import HepScaleExecutor, Workers
from hepscale.executor import placing

pytestmark = queues.needs_worker


def binned(events):
    """Return the events in bins, whole numbers."""
    x = np.asarray(events.x)
    counts = hist.Hist.new.Reg(40, 0, 3000, name="x").Reg(7, 0, 7, name="rest").Int64()
    return {"counts": counts.fill(x=x, rest=x % 7), "events": len(x)}


def slowly(seconds):
    """Return what takes long enough to be killed meanwhile."""

    def process(events):
        time.sleep(seconds)
        return binned(events)

    return process


def run(executor, files, function):
    runner = Runner(executor=executor, schema=BaseSchema, chunksize=2)
    return runner(files.fileset, processor_instance=function, treename="Events")


@pytest.fixture
def equal(files, monkeypatch):
    """Check that a run with three workers, to which something happens, gives what it should."""
    # workers of this machine may use what is installed here
    monkeypatch.setattr(placing, "default_environment", lambda engine: None)

    def check(seconds, act):
        options = {"retries": 3, "status": False, "engine": crews.engine}
        executor = HepScaleExecutor(workers=Workers(count=3), **options)
        with meanwhile(act):
            output = run(executor, files, slowly(seconds))
            over.set()
        expected = run(IterativeExecutor(status=False), files, binned)
        equal_analysis.same(output, expected)
        assert output["counts"].sum() == output["events"] == len(files.good) * support.EVENTS

    over = check.over = threading.Event()
    return check


@pytest.mark.parametrize("whom", ["one of three", "all, and new ones come"])
def test_bins_are_equal_whatever_is_killed(equal, whom):
    def act():
        busy = crews.busy_workers(3)
        crews.kill(busy[0])
        if whom != "one of three":
            for worker in set(crews.workers()) & set(busy):
                crews.kill(worker)
            started.append(crews.more(2))

    started = []
    try:
        equal(0.1, act)
    finally:
        for one in started:
            one.stop()


def test_bins_are_equal_when_a_worker_is_killed_every_3_s(equal):
    def act():
        crews.busy_workers(1)
        while not equal.over.wait(3):
            # others take their places
            busy = [one for one in crews.workers() if len(crews.forkservers(one)) >= 2]
            for worker in busy[:1]:
                crews.kill(worker)
                killed.append(worker)

    killed = []
    equal(0.25, act)
    print(f"{len(killed)} were killed")
    assert len(killed) >= 4


@pytest.mark.root
def test_a_file_that_only_this_machine_has(files, tmp_path, monkeypatch):
    """The first worker that misses it ends the run, for metadata as for chunks."""
    monkeypatch.setattr(placing, "default_environment", lambda engine: None)
    secret = Path(os.environ["HEPSCALE_SCRATCH_DIR"]) / "password"
    secret.touch(0o600)
    secret.write_text("secret")
    data, place, port = tmp_path / "data", tmp_path / "place", ports.free("")
    data.mkdir()
    fileset = {"data": [shutil.copy(files.good[0], data / f"{n}.root") for n in range(100)]}
    options = {"engine": crews.engine, "port": port, "password_file": secret, "retries": 3}
    within = ("unshare", "--mount", "sh", "-ec", f"mount -t tmpfs none '{data}'; exec \"$@\"", "sh")
    address, known = f"127.0.0.1:{port}", {}
    with elsewhere.worker(address, secret, place, *within, engine=crews.engine):
        for _ in range(2):
            error = support.failing(
                analysis.tally, fileset, hepscale.InputError, metadata_cache=known, **options
            )
            assert error.fact == "A worker does not find a file that is on this machine."
            assert set(error.items) < {*map(str, fileset["data"])}
            support.run(analysis.tally, fileset, metadata_cache=known)
    secret.unlink()


def test_a_file_that_only_the_analysis_does_not_find(files, tmp_path, monkeypatch):
    """It is not taken for the file of the chunk, which the workers do see."""
    monkeypatch.setattr(placing, "default_environment", lambda engine: None)
    (tmp_path / "scale").write_text("2")
    path = str(tmp_path / "scale")

    def process(events):
        return {"sum": int(Path(path).read_text())}

    options = {"engine": crews.engine, "workers": Workers(count=1), "interposer": "userns"}
    error = support.failing(process, {"data": files.good[:1]}, **options)
    assert f"{path} is outside of what the sandbox shows" in str(error)
    assert error.failed
