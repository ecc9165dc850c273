"""Runs cases in fresh processes, in rounds, and keeps what each of them told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Rounds", "Spread", "in_turn", "ratios"]

_LONGEST_S = 1800


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
    """The results of all rounds: for each name one result a round."""

    folder: Path
    told: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def run(self, name: str, case: str, **options: Any) -> dict[str, Any]:
        """Run a case in a process of its own and keep its result under `name`."""
        print(f"  {name} ...", end="", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="runs-", dir=self.folder) as runs:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.child", case, json.dumps(options)],
                env={**os.environ, "HEPSCALE_RUN_DIR": runs},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                timeout=_LONGEST_S,
                check=False,
            )
        if done.returncode:
            sys.exit(f"\n{name} failed:\n{done.stderr[-4000:]}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        self.told.setdefault(name, []).append(result)
        print(f" {' '.join(f'{one:.2f}' for one in result['seconds'])} s", file=sys.stderr)
        return result

    def figures(self, name: str, key: str, index: int | None = None) -> list[float]:
        """Return one figure of each round; with `index` that of one of several runs."""
        values = [result[key] for result in self.told[name]]
        return values if index is None else [value[index] for value in values]

    def spread(self, name: str, key: str, index: int | None = None) -> Spread:
        """Return the spread of a figure over the rounds."""
        return Spread.of(self.figures(name, key, index))

    def loads(self) -> Spread:
        """Return the spread of the machine's load while this ran."""
        return Spread.of([one for told in self.told.values() for r in told for one in r["load"]])


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Divide round by round."""
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def in_turn(names: list[str], number: int) -> Iterator[str]:
    """Yield `names`, beginning with another one in each round."""
    start = number % len(names)
    yield from names[start:] + names[:start]
