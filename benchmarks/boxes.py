"""What a sandbox costs: the same tasks with and without one, in turn, by two engines at a time."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np

from benchmarks.report import Line
from hepscale.config import load_settings
from hepscale.executor.engines.local import LocalEngine
from hepscale.executor.task import Chunk, ChunkKey, FrameBytes, Task, TaskEnded, TaskId, Usage
from hepscale.worker.frames import FrameReader, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.rounds import Rounds

__all__ = ["sandbox", "sandbox_case"]

_MOST_CPU, _MOST_START_MS, _MOST_STATS = 1.02, 10.0, 1.1
_STATS = 20_000
_PRELOAD = ("cloudpickle", "coffea.processor", "coffea.nanoevents", "hist")
_numbers = itertools.count(1)


def sandbox(rounds: Rounds, number: int, *, quick: bool) -> list[Line]:
    """Tasks in a sandbox, beside the same without one."""
    for _ in range(number):
        rounds.run("sandbox", "sandbox", times=5 if quick else 15)
    section = "Tasks in a sandbox, beside the same without one"

    def line(label: str, unit: str, key: str, target: float | None = None) -> Line:
        return Line(section, label, unit, rounds.spread("sandbox", lambda one: one[key]), target)

    return [
        line("a chunk that only calculates", "", "cpu", _MOST_CPU),
        line(f"{_STATS:,} times stat()", "", "stats", _MOST_STATS),
        line("more time to start a task and hear of its end", "ms", "start_ms", _MOST_START_MS),
        line("starting a task without a sandbox", "ms", "plain_ms"),
        line("more time until the first task has ended", "s", "first_s"),
    ]


def sandbox_case(times: int) -> dict[str, Any]:
    """Measure both ways, in turn; the least of each counts, as others disturb both."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, dict[str, list[float]]] = {}
        engines = {}
        first_s = {}
        for kind in ("none", "userns"):
            started = time.perf_counter()
            settings = load_settings(interposer={"kind": kind})
            engines[kind] = LocalEngine(1, settings, _PRELOAD)
            engines[kind].start()
            _run(engines[kind], Path(folder), _nothing)
            first_s[kind] = time.perf_counter() - started
        for at in range(times):
            for kind in ("none", "userns") if at % 2 else ("userns", "none"):
                of = found.setdefault(kind, {"start": [], "cpu": [], "stats": []})
                of["start"] += [_run(engines[kind], Path(folder), _nothing)[1] for _ in range(5)]
                of["cpu"].append(_run(engines[kind], Path(folder), _calculate)[0])
                of["stats"].append(_run(engines[kind], Path(folder), _stats)[0])
        for engine in engines.values():
            engine.close()
    plain, boxed = found["none"], found["userns"]
    return {
        "seconds": [time.perf_counter() - begun],
        "cpu": min(boxed["cpu"]) / min(plain["cpu"]),
        "stats": min(boxed["stats"]) / min(plain["stats"]),
        "start_ms": 1e3 * (median(boxed["start"]) - median(plain["start"])),
        "plain_ms": 1e3 * median(plain["start"]),
        "first_s": first_s["userns"] - first_s["none"],
    }


def _run(engine: LocalEngine, folder: Path, function: Callable[[Any], Any]) -> tuple[float, float]:
    """Run one task; return what it has measured, and what its start and end took besides."""
    task_id = TaskId(f"bench-{next(_numbers)}")
    payload = folder / task_id
    # workers do not have this package
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    payload.write_bytes(
        cloudpickle.dumps({"function": function, "merge": sum, "dumps": cloudpickle.dumps})
    )
    chunk = Chunk(ChunkKey(task_id), 0)
    work = cloudpickle.dumps([(chunk.key, 0, chunk.item)])
    reader, told, usage = FrameReader(), 0.0, None
    begun = time.perf_counter()
    engine.submit(Task(task_id, 1, (chunk,), work, payload))
    while usage is None:
        for event in engine.poll(1.0):
            if isinstance(event, FrameBytes):
                for frame in reader.feed(event.data):
                    if frame.kind is Kind.OUTPUT:
                        told = cloudpickle.loads(frame.payload)
                    elif frame.kind is Kind.FAILED:
                        sys.exit(f"a task has failed: {frame.meta}")
            elif isinstance(event, TaskEnded):
                usage = event.usage
                if event.status != "done":
                    sys.exit(f"a task has ended: {event}")
    assert isinstance(usage, Usage)
    return told, time.perf_counter() - begun - told


def _nothing(_: int) -> float:
    return 0.0


def _calculate(_: int) -> float:
    begun = time.perf_counter()
    values = np.random.default_rng(1).normal(size=500_000)
    for _ in range(8):
        values = np.sort(np.sqrt(np.abs(values)) + values)
        sum(number * number for number in range(100_000))
    return time.perf_counter() - begun


def _stats(_: int) -> float:
    top = os.path.dirname(os.__file__)
    names = [f"{top}/{name}" for name in os.listdir(top)]
    begun = time.perf_counter()
    for name in itertools.islice(itertools.cycle(names), _STATS):
        os.stat(name)
    return time.perf_counter() - begun
