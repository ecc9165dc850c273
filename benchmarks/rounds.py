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
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = ["HERE", "Rounds", "Spread", "in_turn"]

HERE = (sys.executable, "-m", "benchmarks.child")
_LONGEST_S = 1800
# with more of the cores in the hands of others than this, a figure says little
_MOST_OTHERS = 0.1


@dataclass(frozen=True)
class Spread:
    """The median of a figure over `rounds` rounds, and its least and largest value."""

    median: float
    least: float
    most: float
    rounds: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Return the spread of `values`."""
        return cls(median(values), min(values), max(values), len(values))

    def times(self, factor: float) -> Spread:
        """Return the spread of the figure multiplied by `factor`."""
        return Spread(self.median * factor, self.least * factor, self.most * factor, self.rounds)


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

    def run(
        self, name: str, case: str, *, within: Sequence[str] = HERE, **options: Any
    ) -> dict[str, Any]:
        """Run a case in a process of its own and keep its result under `name`.

        `within` is the command that is given the case and its options.
        """
        tried: list[dict[str, Any]] = []
        while len(tried) <= self.again and not any(map(_is_quiet, tried)):
            tried.append(self._run(name, [*within, case, json.dumps(options)]))
        result = min(tried, key=lambda one: one["others"])
        self.told.setdefault(name, []).append(result)
        return result

    def _run(self, name: str, command: list[str]) -> dict[str, Any]:
        print(f"  {name} ...", end="", file=sys.stderr, flush=True)
        begun, others_s = time.monotonic(), _others_s()
        with tempfile.TemporaryDirectory(prefix="runs-", dir=self.folder) as runs:
            done = subprocess.run(
                command,
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

    def quiet(self, *names: str) -> list[tuple[dict[str, Any], ...]]:
        """Return the results of these names, round by round.

        Of the rounds, those in which others left the machine alone; all, if there is none.
        """
        together = list(zip(*(self.told[name] for name in names), strict=True))
        alone = [these for these in together if all(_is_quiet(one) for one in these)]
        return alone or together

    def spread(self, name: str, figure: Callable[[dict[str, Any]], float]) -> Spread:
        """Return the spread of a figure."""
        return Spread.of([figure(one) for (one,) in self.quiet(name)])

    def ratio(self, ours: tuple[str, int], theirs: tuple[str, int]) -> Spread:
        """Divide the seconds of two runs, each given by name and number, round by round."""
        pairs = self.quiet(ours[0], theirs[0])
        return Spread.of(
            [one["seconds"][ours[1]] / two["seconds"][theirs[1]] for one, two in pairs]
        )

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


def _is_quiet(result: dict[str, Any]) -> bool:
    return bool(result["others"] <= _MOST_OTHERS)


def in_turn(names: list[str], number: int) -> Iterator[str]:
    """Yield `names`, beginning with another one in each round."""
    start = number % len(names)
    yield from names[start:] + names[:start]
