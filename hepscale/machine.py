"""What this process may use of the machine: cores and memory, containers' limits included."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["memory_limit_bytes", "usable_cores"]


def usable_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may keep busy: its affinity and its cgroup's quota.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are; for tests.
    """
    cores = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else 1.0
    for folder in _cgroup_folders("cpu", root):
        words = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
            cores = min(cores, int(words[0]) / int(words[1]))
    return max(1, math.ceil(cores))


def memory_limit_bytes(root: Path = Path("/")) -> int:
    """Return how much memory this process may use: the machine's, or less where a cgroup says so.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are; for tests.

    Returns
    -------
    int
        Bytes; 0 where it cannot be found out.
    """
    limits = [
        int(line.split()[1]) * 1024
        for line in _lines(root / "proc/meminfo")
        if line.startswith("MemTotal:")
    ]
    for folder in _cgroup_folders("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            # "max" is no limit
            limits += [int(word) for word in _words(folder / name) if word.isdigit()]
    return min(limits, default=0)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _words(path: Path) -> list[str]:
    return [word for line in _lines(path) for word in line.split()]


def _cgroup_folders(controller: str, root: Path) -> Iterator[Path]:
    """Yield the process's cgroup and those above it, of version 2 and of version 1."""
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            tops = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            tops = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller]
        else:
            continue
        for top in tops:
            here = top / path.strip("/")
            yield here
            # Inside a container the path may be the host's; then only the top exists.
            while here != top:
                here = here.parent
                yield here
