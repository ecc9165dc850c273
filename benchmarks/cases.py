"""What is measured: each case runs in a fresh process of its own, see `benchmarks.child`.

A case takes its options and returns plain data; times are seconds of wall time, memory in MB.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import hist
import numpy as np
from coffea import processor
from coffea.nanoevents import NanoAODSchema

from benchmarks import watch
from benchmarks.boxes import sandbox_case
from benchmarks.live import live_view
from hepscale.demo_events import generate
from hepscale.executor.coffea import HepScaleExecutor
from hepscale.executor.ledger import Ledger
from hepscale.executor.policy import Pace
from hepscale.executor.task import Chunk, ChunkKey
from hepscale.executor.waiting import Waiting
from hepscale.workers.api import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["CASES"]

CORES = 2


@contextmanager
def _iterative() -> Iterator[Any]:
    yield processor.IterativeExecutor(status=False)


@contextmanager
def _futures() -> Iterator[Any]:
    yield processor.FuturesExecutor(workers=CORES, status=False)


@contextmanager
def _dask() -> Iterator[Any]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=CORES, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,  # type: ignore[no-untyped-call]
    ):
        client.wait_for_workers(CORES)
        yield processor.DaskExecutor(client=client, status=False)


@contextmanager
def _hepscale() -> Iterator[Any]:
    yield HepScaleExecutor(cores=CORES, status=False)


@contextmanager
def _workqueue() -> Iterator[Any]:
    yield HepScaleExecutor(engine="workqueue", workers=_WORKERS, status=False)


_WORKERS = Workers("local", cores=CORES)
PEERS = {
    "iterative": _iterative,
    "futures": _futures,
    "dask": _dask,
    "hepscale": _hepscale,
    "workqueue": _workqueue,
}


def zmumu(
    peer: str,
    files: tuple[int, int],
    chunksize: int,
    runs: int,
    output: str,
    analysis: processor.ProcessorABC,
) -> dict[str, Any]:
    """Run the analysis `runs` times with one executor; pickle the last result."""
    fileset = generate(events=files[0], files=files[1])
    seconds, first_frame_s, shares = [], [], []
    for _ in range(runs):
        with PEERS[peer]() as executor, watch.watched() as seen:
            runner = processor.Runner(
                executor=executor, schema=NanoAODSchema, chunksize=chunksize, metadata_cache={}
            )
            cpu_s, begun = time.process_time(), time.perf_counter()
            out = runner(fileset, processor_instance=analysis, treename="Events")
            seconds.append(time.perf_counter() - begun)
            shares.append((time.process_time() - cpu_s) / seconds[-1])
            first_frame_s.append(seen.first_frame_s(begun))
    Path(output).write_bytes(cloudpickle.dumps(out))
    about: dict[str, Any] = {"seconds": seconds}
    if peer == "hepscale":
        about |= {
            "first_frame_s": first_frame_s,
            "manager_cpu_share": shares,
            "clock": seen.clock,
            "tasks": seen.tasks,
        }
    return about


def noop(chunks: int) -> dict[str, Any]:
    """Run chunks that do nothing, on workers that are warm."""
    executor = HepScaleExecutor(cores=CORES, status=False)
    executor(list(range(CORES)), _nothing, None)
    with watch.watched() as seen:
        begun = time.perf_counter()
        out, error = executor(list(range(chunks)), _nothing, None)
        wall_s = time.perf_counter() - begun
    _check(error == 0 and out == {"chunks": chunks}, f"{out}, {error}")
    return {
        "seconds": [wall_s],
        "chunk_ms": 1e3 * wall_s / chunks,
        "first_frame_s": seen.first_frame_s(begun),
        "tasks": seen.tasks,
    }


def noop_workers(chunks: int, workers: int) -> dict[str, Any]:
    """Run chunks that do nothing on workers of Work Queue with one core each, cold and warm."""
    # all of them are on this machine: each gets what is there for one
    started = Workers("local", count=workers, memory_mb=500)
    executor = HepScaleExecutor(engine="workqueue", workers=started, status=False)
    seconds, shares = [], []
    for _ in range(2):
        cpu_s, begun = time.process_time(), time.perf_counter()
        out, error = executor(list(range(chunks)), _nothing, None)
        seconds.append(time.perf_counter() - begun)
        shares.append((time.process_time() - cpu_s) / seconds[-1])
        _check(error == 0 and out == {"chunks": chunks}, f"{out}, {error}")
    executor.close()
    return {"seconds": seconds, "manager_cpu_share": shares}


def planning(chunks: int, slots: int) -> dict[str, Any]:
    """Cut chunks into tasks, as a run does that knows how long they take."""
    made = [Chunk(ChunkKey(f"{number:08x}"), number, stop=50_000) for number in range(chunks)]
    begun = time.perf_counter()
    waiting, tasks = Waiting(), 0
    waiting.add(Ledger(made).open_chunks())
    # a second for a chunk, and each slot has done some
    waiting.pace = Pace().after_chunks(20.0 * slots, 20 * 50_000 * slots)
    while task := waiting.next_task(slots, 10.0 * slots):
        tasks += 1
        chunks -= len(task)
    seconds = time.perf_counter() - begun
    _check(chunks == 0, f"{chunks} chunks were not planned")
    return {"seconds": [seconds], "tasks": tasks}


def histograms(chunks: int, kind: str) -> dict[str, Any]:
    """Run chunks that each return a histogram of 5 MB."""
    make = {"noise": _noise, "spectrum": _spectrum}[kind]
    executor = HepScaleExecutor(cores=CORES, status=False)
    executor(list(range(CORES)), make, None)
    before_mb = watch.reset_peak_mb()
    with watch.watched() as seen:
        cpu_s, begun = time.process_time(), time.perf_counter()
        out, error = executor(list(range(chunks)), make, None)
        wall_s = time.perf_counter() - begun
        cpu_s = time.process_time() - cpu_s
    peak_mb = watch.peak_mb()
    expected = make(0).values().sum()
    _check(error == 0 and abs(out.values().sum() / expected / chunks - 1) < 0.01, f"{out}, {error}")
    return {
        "seconds": [wall_s],
        "growth_mb": peak_mb - before_mb,
        "journal_mb": watch.newest_journal_mb(Path(os.environ["HEPSCALE_RUN_DIR"])),
        "manager_cpu_share": cpu_s / wall_s,
        "clock": seen.clock,
        "frames": seen.frames,
        "tasks": seen.tasks,
    }


def _nothing(_: int) -> dict[str, int]:
    return {"chunks": 1}


def _noise(item: int) -> Any:
    """Return 625,000 bins of 8 bytes with random contents: nothing that could be compressed."""
    made = hist.Hist(hist.axis.Regular(625_000, 0, 1), storage=hist.storage.Double())
    made.view()[:] = np.random.default_rng(item).random(625_000)
    return made


def _spectrum(item: int) -> Any:
    """Return 250 x 1250 bins of 16 bytes, filled with 50,000 weighted entries around a peak."""
    made = hist.Hist(
        hist.axis.Regular(250, 0, 500),
        hist.axis.Regular(1250, 0, 10),
        storage=hist.storage.Weight(),
    )
    rng = np.random.default_rng(item)
    made.fill(rng.normal(91, 15, 50_000), rng.exponential(2, 50_000), weight=rng.random(50_000))
    return made


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(f"the result is wrong: {what}")


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    "zmumu": zmumu,
    "noop": noop,
    "noop_workers": noop_workers,
    "histograms": histograms,
    "planning": planning,
    "sandbox": sandbox_case,
    "view": live_view,
}
