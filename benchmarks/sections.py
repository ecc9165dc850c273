"""The parts of the benchmark: which cases run, and which figures come of them."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.boxes import sandbox
from benchmarks.environments import environment
from benchmarks.live import view
from benchmarks.report import Line
from benchmarks.rounds import in_turn
from benchmarks.same import differences
from benchmarks.software import software
from hepscale.demo_events import generate

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.rounds import Rounds, Spread

__all__ = ["EVENTS", "FILES", "SECTIONS"]

EVENTS, FILES = 2_000_000, 4
# runs in one process; what a second run of Dask and Futures costs is not asked for
_RUNS = {"iterative": 2, "futures": 1, "dask": 1, "hepscale": 2}
_CORES = 2
# (first run / Futures, second run / half of Iterative) at most, for each size of chunks
_TARGETS = {50_000: (0.80, 1.25), 10_000: (0.85, 1.15)}
_MOST_STREAMING = 5.0
_MOST_CHUNK_MS = 3.0
_MOST_FIRST_FRAME_S = 0.5
_MOST_GROWTH_MB = 150.0
_MOST_REMOTE = 1.5
_MOST_MANY_S, _MOST_BUSY = 90.0, 60.0
_MOST_PLANNING_S = 2.0


def zmumu(rounds: Rounds, number: int, *, quick: bool, chunksize: int) -> list[Line]:
    """Z to two muons over 2 million events, beside coffea's own executors."""
    generate(events=EVENTS, files=FILES)
    for at in range(number):
        print(f"Z to mumu, chunks of {chunksize}, round {at + 1} of {number}", file=sys.stderr)
        for peer in in_turn(list(_RUNS), at):
            rounds.run(
                f"{peer}, {EVENTS // chunksize} chunks",
                "zmumu",
                peer=peer,
                files=[EVENTS, FILES],
                chunksize=chunksize,
                runs=_RUNS[peer],
                output=str(rounds.folder / peer),
            )
        _compare(rounds)
    return _zmumu_lines(rounds, chunksize)


def _compare(rounds: Rounds) -> None:
    for peer in _RUNS:
        different = differences(rounds.folder / "iterative", rounds.folder / peer)
        if different:
            sys.exit(f"{peer} and iterative differ: {'; '.join(different)}")


def _zmumu_lines(rounds: Rounds, chunksize: int) -> list[Line]:
    chunks = EVENTS // chunksize
    section = f"Z to mumu, {EVENTS:,} events in {chunks} chunks, {_CORES} cores"
    first_target, warm_target = _TARGETS[chunksize]

    def ratio(ours: int, peer: str, run: int = 0) -> Spread:
        return rounds.ratio((f"hepscale, {chunks} chunks", ours), (f"{peer}, {chunks} chunks", run))

    def seconds(peer: str, run: int = 0) -> Spread:
        return rounds.spread(f"{peer}, {chunks} chunks", lambda one: one["seconds"][run])

    def half(spread: Spread) -> Spread:
        return spread.times(_CORES)

    return [
        Line(section, "first run / Futures", "", ratio(0, "futures"), first_target),
        Line(section, "first run / Dask (its cluster runs already)", "", ratio(0, "dask")),
        Line(section, "first run / Iterative", "", ratio(0, "iterative")),
        Line(section, "second run / (Iterative / 2)", "", half(ratio(1, "iterative")), warm_target),
        Line(section, "second run / (second of Iterative / 2)", "", half(ratio(1, "iterative", 1))),
        Line(section, "second run / Futures", "", ratio(1, "futures")),
        Line(section, "second run / Dask", "", ratio(1, "dask")),
        Line(section, "HepScale, first run", "s", seconds("hepscale")),
        Line(section, "HepScale, second run", "s", seconds("hepscale", 1)),
        Line(section, "Iterative, first run", "s", seconds("iterative")),
        Line(section, "Iterative, second run", "s", seconds("iterative", 1)),
        Line(section, "Futures", "s", seconds("futures")),
        Line(section, "Dask", "s", seconds("dask")),
        *_inside(rounds, f"hepscale, {chunks} chunks", section),
    ]


def _inside(rounds: Rounds, name: str, section: str) -> list[Line]:
    """Say what the second run spent its time on."""

    def elsewhere(one: dict[str, Any]) -> float:
        return float(100 * (1 - one["clock"]["process"] / (one["seconds"][-1] * _CORES)))

    return [
        Line(
            section,
            "second run: streaming, of a task's time",
            "%",
            rounds.spread(name, _streaming),
            _MOST_STREAMING,
        ),
        Line(section, "second run: cores not processing", "%", rounds.spread(name, elsewhere)),
        Line(
            section,
            "second run: the manager's use of a core",
            "%",
            rounds.spread(name, lambda one: 100 * one["manager_cpu_share"][-1]),
        ),
        Line(
            section,
            "second run: first frame after",
            "s",
            rounds.spread(name, lambda one: one["first_frame_s"][-1]),
            _MOST_FIRST_FRAME_S,
        ),
        Line(section, "second run: tasks", "", rounds.spread(name, lambda one: one["tasks"])),
    ]


def _streaming(told: dict[str, Any]) -> float:
    clock = told["clock"]
    work_s = clock["process"] + clock["merge"] + clock["stream"]
    return float(100 * clock["stream"] / work_s)


def noop(rounds: Rounds, number: int, *, quick: bool) -> list[Line]:
    """Chunks that do nothing."""
    chunks = 500 if quick else 2_000
    for _ in range(number):
        rounds.run("no-op", "noop", chunks=chunks)
    section = f"{chunks:,} chunks that do nothing, workers warm"

    def line(label: str, unit: str, key: str, target: float | None = None) -> Line:
        return Line(section, label, unit, rounds.spread("no-op", lambda one: one[key]), target)

    return [
        line("time for a chunk", "ms", "chunk_ms", _MOST_CHUNK_MS),
        line("first frame after", "s", "first_frame_s", _MOST_FIRST_FRAME_S),
        line("tasks", "", "tasks"),
    ]


def workqueue(rounds: Rounds, number: int, *, quick: bool) -> list[Line]:
    """Z to two muons on one worker of Work Queue, beside the local engine."""
    generate(events=EVENTS, files=FILES)
    for at in range(number):
        print(f"Work Queue, round {at + 1} of {number}", file=sys.stderr)
        for peer in in_turn(["hepscale", "workqueue"], at):
            rounds.run(
                f"{peer}, for Work Queue",
                "zmumu",
                peer=peer,
                files=[EVENTS, FILES],
                chunksize=50_000,
                runs=3,
                output=str(rounds.folder / peer),
            )
        different = differences(rounds.folder / "hepscale", rounds.folder / "workqueue")
        if different:
            sys.exit(f"workqueue and local differ: {'; '.join(different)}")
    section = (
        f"Work Queue, one worker of {_CORES} cores, {EVENTS // 50_000} chunks of 50,000 events"
    )
    ours, local = "workqueue, for Work Queue", "hepscale, for Work Queue"

    def seconds(run: int) -> Spread:
        return rounds.spread(ours, lambda one: one["seconds"][run])

    return [
        Line(section, "warm run / local", "", rounds.ratio((ours, 2), (local, 2)), _MOST_REMOTE),
        Line(section, "first run, with unpacking and import", "s", seconds(0)),
        Line(section, "warm run", "s", seconds(2)),
    ]


def many_workers(rounds: Rounds, number: int, *, quick: bool) -> list[Line]:
    """Chunks that do nothing on fifty workers of Work Queue, all on this machine."""
    chunks, workers = (1_000, 5) if quick else (10_000, 50)
    rounds.run("many workers", "noop_workers", chunks=chunks, workers=workers)
    section = f"{chunks:,} chunks that do nothing, {workers} workers with one core each here"

    def line(
        label: str, unit: str, key: str, run: int, factor: float, target: float | None
    ) -> Line:
        spread = rounds.spread("many workers", lambda one: factor * one[key][run])
        return Line(section, label, unit, spread, target)

    return [
        line("warm", "s", "seconds", 1, 1.0, _MOST_MANY_S),
        line("warm: the manager's use of a core", "%", "manager_cpu_share", 1, 100.0, _MOST_BUSY),
        line("cold: each worker unpacks and imports", "s", "seconds", 0, 1.0, None),
    ]


def planning(rounds: Rounds, number: int, *, quick: bool) -> list[Line]:
    """The policy alone: many chunks are cut into tasks."""
    chunks, slots = (10_000, 100) if quick else (100_000, 1_000)
    for _ in range(number):
        rounds.run("planning", "planning", chunks=chunks, slots=slots)
    seconds = rounds.spread("planning", lambda one: one["seconds"][0])
    tasks = rounds.spread("planning", lambda one: one["tasks"])
    section = f"{chunks:,} chunks cut into tasks for {slots:,} slots"
    return [
        Line(section, "time", "s", seconds, _MOST_PLANNING_S),
        Line(section, "tasks", "", tasks),
    ]


def histograms(rounds: Rounds, number: int, *, quick: bool) -> list[Line]:
    """Chunks that each return a histogram of 5 MB."""
    chunks = 400 if quick else 2_000
    lines = []
    for kind, what in (("spectrum", "a spectrum, weighted"), ("noise", "random numbers")):
        name = f"histograms, {kind}"
        for _ in range(number):
            rounds.run(name, "histograms", chunks=chunks, kind=kind)
        lines += _histogram_lines(
            rounds, name, f"{chunks:,} chunks that each return a histogram of 5 MB: {what}"
        )
    return lines


def _histogram_lines(rounds: Rounds, name: str, section: str) -> list[Line]:
    def line(label: str, unit: str, key: str, target: float | None = None) -> Line:
        return Line(section, label, unit, rounds.spread(name, lambda one: one[key]), target)

    def manager(one: dict[str, Any]) -> float:
        return float(100 * one["manager_cpu_share"])

    return [
        line("growth of the manager's peak memory", "MB", "growth_mb", _MOST_GROWTH_MB),
        Line(section, "time", "s", rounds.spread(name, lambda one: one["seconds"][0])),
        line("journal on disk", "MB", "journal_mb"),
        line("frames", "", "frames"),
        Line(
            section,
            "streaming, of a task's time",
            "%",
            rounds.spread(name, _streaming),
            _MOST_STREAMING,
        ),
        Line(section, "the manager's use of a core", "%", rounds.spread(name, manager)),
    ]


SECTIONS: dict[str, Callable[..., list[Line]]] = {
    "zmumu-40": partial(zmumu, chunksize=50_000),
    "zmumu-200": partial(zmumu, chunksize=10_000),
    "noop": noop,
    "histograms": histograms,
    "environment": environment,
    "workqueue": workqueue,
    "many-workers": many_workers,
    "planning": planning,
    "sandbox": sandbox,
    "view": view,
    "cvmfs": software,
}
