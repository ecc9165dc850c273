"""Coffea itself on workers that are killed, or lack a file: bins equal `IterativeExecutor`'s."""

from __future__ import annotations

import time
from pathlib import Path

import crew as crews
import equal_analysis
import hist
import numpy as np
import pytest
import queues
import support
from coffea.nanoevents import BaseSchema
from coffea.processor import IterativeExecutor, Runner
from crew import meanwhile

from hepscale import HepScaleExecutor, Workers
from hepscale.executor import placing

pytestmark = queues.needs_worker


def binned(events):
    """Return the events in bins, whole numbers."""
    x = np.asarray(events.x)
    counts = hist.Hist.new.Reg(40, 0, 3000, name="x").Reg(7, 0, 7, name="rest").Int64()
    return {"counts": counts.fill(x=x, rest=x % 7), "events": len(x)}


def slowly(events):
    """Take long enough to be killed meanwhile."""
    time.sleep(0.1)
    return binned(events)


def run(executor, files, function):
    runner = Runner(executor=executor, schema=BaseSchema, chunksize=2)
    return runner(files.fileset, processor_instance=function, treename="Events")


@pytest.mark.parametrize("whom", ["one of three", "all, and new ones come"])
def test_bins_are_equal_whatever_is_killed(files, monkeypatch, whom):
    # workers of this machine may use what is installed here
    monkeypatch.setattr(placing, "default_environment", lambda engine: None)

    def act():
        busy = crews.busy_workers(3)
        crews.kill(busy[0])
        if whom != "one of three":
            for worker in set(crews.workers()) & set(busy):
                crews.kill(worker)
            started.append(crews.more(2))

    started = []
    options = {"retries": 3, "status": False, "engine": crews.engine}
    executor = HepScaleExecutor(workers=Workers(count=3), **options)
    try:
        with meanwhile(act):
            output = run(executor, files, slowly)
    finally:
        for one in started:
            one.stop()
    expected = run(IterativeExecutor(status=False), files, binned)
    equal_analysis.same(output, expected)
    assert output["counts"].sum() == output["events"] == len(files.good) * support.EVENTS


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
