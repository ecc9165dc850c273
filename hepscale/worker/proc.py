"""What the kernel says of processes, and what it is told of them."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import signal

__all__ = [
    "adopt_orphans",
    "children",
    "depth",
    "die_with_parent",
    "family",
    "pss_mb",
    "read_bytes",
    "rss_mb",
    "since",
    "status",
]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have this process killed, or sent another signal, when its parent dies."""
    _prctl(_PR_SET_PDEATHSIG, number)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def status() -> dict[str, float]:
    """Return the sizes in ``/proc/self/status``, in kB."""
    found = {}
    with open("/proc/self/status", encoding="utf-8") as stream:
        for line in stream:
            name, _, value = line.partition(":")
            if value.endswith("kB\n"):
                found[name] = float(value.split()[0])
    return found


def read_bytes() -> int:
    """Return what this process has read till now, as the kernel counts it; 0 where it does not.

    Of a file, a pipe, a network file system; not what is mapped, nor what a socket receives.
    """
    with contextlib.suppress(OSError, IndexError), open("/proc/self/io", "rb") as stream:
        return int(stream.readline().split()[1])
    return 0


def rss_mb(pid: int) -> float:
    """Return the resident size of a process in MB, 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as stream:
            return int(stream.read().split()[1]) * resource.getpagesize() / 1e6
    except (OSError, IndexError):
        return 0.0


def pss_mb(pid: int) -> float:
    """Return the size of a process in MB, of shared pages its share; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as stream:
            sizes = [line.split()[1] for line in stream if line.startswith(b"Pss:")]
    except OSError:
        return 0.0
    return int(sizes[0]) * 1024 / 1e6 if sizes else rss_mb(pid)


def since(pid: int) -> str:
    """Return when a process began, in a unit of its machine; empty if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            # after its name, which may hold spaces; field 3 is its state, field 22 its start
            fields = stream.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in {"Z", "X"} else fields[19]


def depth(pid: int) -> int:
    """Return how many namespaces of processes know a process, from that of ``/proc`` on."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", "rb") as stream:
        return next((len(line.split()) - 1 for line in stream if line.startswith(b"NSpid:")), 0)
    return 0


def children(pid: int) -> list[int]:
    """Return the children of a process."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as stream:
            return [int(one) for one in stream.read().split()]
    except OSError:
        return []


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found = [pid]
    for one in found:
        found += children(one)
    return found
