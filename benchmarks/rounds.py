"""Runs cases in fresh processes, in rounds, and keeps what each of them told."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Rounds", "Spread", "in_turn", "ratios"]

_LONGEST_S = 1800
# with more of the cores in the hands of others than this, a figure says little
_MOST_OTHERS = 0.1


@dataclass(frozen=True)
class Spread:
    """The median of a figure over the rounds, and its least and largest value."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Return the spread of `values`."""
        return cls(median(values), min(values), max(values))


@dataclass
class Rounds:
    """The results of all rounds: for each name one result a round.

    Attributes
    ----------
    folder
        Where processes may leave files.
    again
        How often a measurement is repeated while others use the machine; the quietest counts.
    """

    folder: Path
    again: int = 0
    told: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def run(self, name: str, case: str, **options: Any) -> dict[str, Any]:
        """Run a case in a process of its own and keep its result under `name`."""
        tried: list[dict[str, Any]] = []
        while len(tried) <= self.again and all(one["others"] > _MOST_OTHERS for one in tried):
            tried.append(self._run(name, case, options))
        result = min(tried, key=lambda one: one["others"])
        self.told.setdefault(name, []).append(result)
        return result

    def _run(self, name: str, case: str, options: dict[str, Any]) -> dict[str, Any]:
        print(f"  {name} ...", end="", file=sys.stderr, flush=True)
        begun, others_s = time.monotonic(), _others_s()
        with tempfile.TemporaryDirectory(prefix="runs-", dir=self.folder) as runs:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.child", case, json.dumps(options)],
                env={**os.environ, "HEPSCALE_RUN_DIR": runs},
                capture_output=True,
                text=True,
                timeout=_LONGEST_S,
                check=False,
            )
        if done.returncode:
            sys.exit(f"\n{name} failed:\n{done.stderr[-4000:]}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        cores = os.cpu_count() or 1
        result["others"] = (_others_s() - others_s) / (time.monotonic() - begun) / cores
        seconds = " ".join(f"{one:.2f}" for one in result["seconds"])
        print(f" {seconds} s, others {result['others']:.0%}", file=sys.stderr)
        return result

    def figures(self, name: str, key: str, index: int | None = None) -> list[float]:
        """Return one figure of each round; with `index` that of one of several runs."""
        values = [result[key] for result in self.told[name]]
        return values if index is None else [value[index] for value in values]

    def spread(self, name: str, key: str, index: int | None = None) -> Spread:
        """Return the spread of a figure over the rounds."""
        return Spread.of(self.figures(name, key, index))

    def others(self) -> Spread:
        """Return what others used of the machine's cores while this ran."""
        return Spread.of([one["others"] for told in self.told.values() for one in told])


def _others_s() -> float:
    """Return the CPU seconds of the machine since its start, without those of our children."""
    with open("/proc/stat") as stream:
        user, nice, system, _idle, _iowait, irq, softirq = map(int, stream.readline().split()[1:8])
    ours = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = user + nice + system + irq + softirq
    return ticks / os.sysconf("SC_CLK_TCK") - ours.ru_utime - ours.ru_stime


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Divide round by round."""
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def in_turn(names: list[str], number: int) -> Iterator[str]:
    """Yield `names`, beginning with another one in each round."""
    start = number % len(names)
    yield from names[start:] + names[:start]
