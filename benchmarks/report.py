"""The figures of a benchmark, as text and as plain data."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.rounds import Spread

__all__ = ["Line", "as_data", "as_text", "machine"]

_PACKAGES = ("coffea", "uproot", "awkward", "hist", "numpy", "distributed", "loky")


@dataclass(frozen=True)
class Line:
    """One figure: its spread over the rounds and, where there is one, what it should be at most."""

    section: str
    label: str
    unit: str
    spread: Spread
    target: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the median is within the target; None without a target."""
        return None if self.target is None else self.spread.median <= self.target


def machine() -> dict[str, Any]:
    """Say where this was measured."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def as_text(lines: list[Line], others: Spread, rounds: int) -> str:
    """Return the figures as a table of plain text."""
    about = ", ".join(f"{name} {value}" for name, value in machine().items())
    text = [
        f"{about}; rounds: {rounds}",
        "median (least to most; number of rounds in which others left the machine alone)",
        f"others used of the cores meanwhile: {_percent(others)}",
    ]
    section = ""
    for line in lines:
        if line.section != section:
            section = line.section
            text += ["", section]
        text.append(_row(line))
    wanted = [line for line in lines if line.target is not None]
    missed = [line for line in wanted if not line.met]
    text += ["", f"targets met: {len(wanted) - len(missed)} of {len(wanted)}"]
    text += [f"missed: {line.section}: {line.label}" for line in missed]
    return "\n".join(text)


def _percent(share: Spread) -> str:
    return f"{share.median:.0%} ({share.least:.0%} to {share.most:.0%})"


def _row(line: Line) -> str:
    spread = line.spread
    row = f"  {line.label:<50}{spread.median:>9.3g} {line.unit:<3}"
    if spread.least != spread.most:
        row += f" ({spread.least:.3g} to {spread.most:.3g}; {spread.rounds})"
    if line.target is not None:
        row = f"{row:<86} <= {line.target:g}: {'met' if line.met else 'MISSED'}"
    return row


def as_data(lines: list[Line], others: Spread, rounds: dict[str, Any]) -> dict[str, Any]:
    """Return everything as plain data: the figures, and what each process told in each round."""
    return {
        "machine": machine(),
        "others": vars(others),
        "figures": [
            {
                "section": line.section,
                "label": line.label,
                "unit": line.unit,
                **vars(line.spread),
                "target": line.target,
                "met": line.met,
            }
            for line in lines
        ],
        "rounds": rounds,
    }
