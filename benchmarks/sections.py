"""The parts of the benchmark: which cases run, and which figures come of them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from benchmarks.report import Line
from benchmarks.rounds import Spread, in_turn, ratios
from benchmarks.same import differences
from hepscale.demo_events import generate

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.rounds import Rounds

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


def zmumu(rounds: Rounds, number: int, *, quick: bool) -> list[Line]:
    """Z to two muons over 2 million events, beside coffea's own executors."""
    generate(events=EVENTS, files=FILES)
    lines = []
    for chunksize in _TARGETS:
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
        lines += _zmumu_lines(rounds, chunksize)
    return lines


def _compare(rounds: Rounds) -> None:
    for peer in _RUNS:
        different = differences(rounds.folder / "iterative", rounds.folder / peer)
        if different:
            sys.exit(f"{peer} and iterative differ: {'; '.join(different)}")


def _zmumu_lines(rounds: Rounds, chunksize: int) -> list[Line]:
    chunks = EVENTS // chunksize
    section = f"Z to mumu, {EVENTS:,} events in {chunks} chunks, {_CORES} cores"

    def seconds(peer: str, run: int = 0) -> list[float]:
        return rounds.figures(f"{peer}, {chunks} chunks", "seconds", run)

    first, warm = seconds("hepscale"), seconds("hepscale", 1)
    half = [[one / _CORES for one in seconds("iterative", run)] for run in (0, 1)]
    first_target, warm_target = _TARGETS[chunksize]
    return (
        [
            Line(section, label, "", Spread.of(values), target)
            for label, values, target in (
                ("first run / Futures", ratios(first, seconds("futures")), first_target),
                (
                    "first run / Dask (its cluster runs already)",
                    ratios(first, seconds("dask")),
                    None,
                ),
                ("first run / Iterative", ratios(first, seconds("iterative")), None),
                ("second run / (Iterative / 2)", ratios(warm, half[0]), warm_target),
                ("second run / (second run of Iterative / 2)", ratios(warm, half[1]), None),
                ("second run / Futures", ratios(warm, seconds("futures")), None),
                ("second run / Dask", ratios(warm, seconds("dask")), None),
            )
        ]
        + [
            Line(section, label, "s", Spread.of(values))
            for label, values in (
                ("HepScale, first run", first),
                ("HepScale, second run", warm),
                ("Iterative, first run", seconds("iterative")),
                ("Iterative, second run", seconds("iterative", 1)),
                ("Futures", seconds("futures")),
                ("Dask", seconds("dask")),
            )
        ]
        + _inside(rounds, f"hepscale, {chunks} chunks", section)
    )


def _inside(rounds: Rounds, name: str, section: str) -> list[Line]:
    """Say what the second run spent its time on."""
    told = rounds.told[name]
    streaming, other = [], []
    for one in told:
        clock = one["clock"]
        work_s = clock["process"] + clock["merge"] + clock["stream"]
        streaming.append(100 * clock["stream"] / work_s)
        other.append(100 * (1 - clock["process"] / (one["seconds"][-1] * _CORES)))
    shares = [100 * one["manager_cpu_share"][-1] for one in told]
    return [
        Line(
            section,
            "second run: streaming, of a task's time",
            "%",
            Spread.of(streaming),
            _MOST_STREAMING,
        ),
        Line(section, "second run: the cores not processing", "%", Spread.of(other)),
        Line(section, "second run: the manager's use of a core", "%", Spread.of(shares)),
        Line(
            section,
            "second run: first frame after",
            "s",
            rounds.spread(name, "first_frame_s", 1),
            _MOST_FIRST_FRAME_S,
        ),
        Line(section, "second run: tasks", "", rounds.spread(name, "tasks")),
    ]


def noop(rounds: Rounds, number: int, *, quick: bool) -> list[Line]:
    """Chunks that do nothing."""
    chunks = 500 if quick else 2_000
    for _ in range(number):
        rounds.run("no-op", "noop", chunks=chunks)
    section = f"{chunks:,} chunks that do nothing, workers warm"
    return [
        Line(section, "time for a chunk", "ms", rounds.spread("no-op", "chunk_ms"), _MOST_CHUNK_MS),
        Line(
            section,
            "first frame after",
            "s",
            rounds.spread("no-op", "first_frame_s"),
            _MOST_FIRST_FRAME_S,
        ),
        Line(section, "tasks", "", rounds.spread("no-op", "tasks")),
    ]


def histograms(rounds: Rounds, number: int, *, quick: bool) -> list[Line]:
    """Chunks that each return a histogram of 5 MB."""
    chunks = 400 if quick else 2_000
    lines = []
    for kind, what in (("spectrum", "a spectrum, weighted"), ("noise", "random numbers")):
        name = f"histograms, {kind}"
        for _ in range(min(number, 3)):
            rounds.run(name, "histograms", chunks=chunks, kind=kind)
        section = f"{chunks:,} chunks that each return a histogram of 5 MB: {what}"
        told = rounds.told[name]
        streaming = [100 * one["clock"]["stream"] / one["clock"]["wall"] for one in told]
        shares = [100 * one["manager_cpu_share"] for one in told]
        lines += [
            Line(
                section,
                "growth of the manager's peak memory",
                "MB",
                rounds.spread(name, "growth_mb"),
                _MOST_GROWTH_MB,
            ),
            Line(section, "time", "s", rounds.spread(name, "seconds", 0)),
            Line(section, "journal on disk", "MB", rounds.spread(name, "journal_mb")),
            Line(section, "frames", "", rounds.spread(name, "frames")),
            Line(
                section, "streaming, of a task's time", "%", Spread.of(streaming), _MOST_STREAMING
            ),
            Line(section, "the manager's use of a core", "%", Spread.of(shares)),
        ]
    return lines


SECTIONS: dict[str, Callable[..., list[Line]]] = {
    "zmumu": zmumu,
    "noop": noop,
    "histograms": histograms,
}
