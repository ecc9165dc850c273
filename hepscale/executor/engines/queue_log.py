"""Reads what the library of Work Queue writes about workers: the only place where it says it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from hepscale.executor.engines.queue import (
    QueueEvent,
    QueueTaskPlaced,
    QueueWorkerJoined,
    QueueWorkerLeft,
    QueueWorkerRefused,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["PROTOCOLS", "NoticeLog", "TransactionLog"]

_LEFT = {
    "IDLE_OUT": "it was idle for too long",
    "FAST_ABORT": "it was too slow",
    "FAILURE": "its connection was lost",
    "STATUS_WORKER": "it only asked for the status",
    "EXPLICIT": "it was sent away",
}

PROTOCOLS = re.compile(r"worker \((\S+)\) is using work queue protocol (\d+), .* protocol (\d+)")
_PASSWORD = re.compile(r"worker (\S+) presented the wrong password")


class _Lines:
    """The lines of a file that grows."""

    def __init__(self, path: Path) -> None:
        self._stream = open(path, "rb")  # noqa: SIM115
        self._rest = b""

    def new(self) -> list[str]:
        *lines, self._rest = (self._rest + self._stream.read()).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def close(self) -> None:
        self._stream.close()


class TransactionLog:
    """The log of workers that join and leave, and of where tasks go."""

    def __init__(self, path: Path) -> None:
        self._lines = _Lines(path)
        self._addresses: dict[str, str] = {}
        self._joined: set[str] = set()

    def read(self) -> list[QueueEvent]:
        """Return the events of the lines that were completed since the last call."""
        events: list[QueueEvent] = []
        for line in self._lines.new():
            words = line.split(maxsplit=5)
            if len(words) < 5 or words[0] == "#":
                continue
            if words[2] == "WORKER":
                events += self._worker(words[3], words[4:])
            elif words[2] == "TASK" and words[4] == "RUNNING":
                events.append(QueueTaskPlaced(int(words[3]), words[5].split()[0]))
        return events

    def close(self) -> None:
        """Close the log."""
        self._lines.close()

    def _worker(self, worker_id: str, words: list[str]) -> Iterator[QueueEvent]:
        if words[0] == "RESOURCES":
            # repeated whenever they change
            if worker_id in self._addresses and worker_id not in self._joined:
                self._joined.add(worker_id)
                size = [_number(words[1], name) for name in ("cores", "memory", "disk")]
                yield QueueWorkerJoined(self._addresses[worker_id], worker_id, *size)
        elif words[1].startswith("CONNECTION"):
            self._addresses[worker_id] = words[0]
        elif words[1].startswith("DISCONNECTION"):
            reason = words[1].removeprefix("DISCONNECTION").strip()
            self._addresses.pop(worker_id, None)
            if worker_id in self._joined:
                self._joined.remove(worker_id)
                yield QueueWorkerLeft(words[0], worker_id, _LEFT.get(reason, "it went away"))


class NoticeLog:
    """The log of what the library complains about.

    The library has one for all queues of a process: it is that of the newest queue.

    Parameters
    ----------
    path
        Where it goes.
    direct
        Has the library write it there; None: to the standard error.
    """

    _open: ClassVar[list[Path]] = []

    def __init__(self, path: Path, direct: Callable[[Path | None], None]) -> None:
        path.touch()
        self._lines = _Lines(path)
        self._path, self._direct = path, direct
        self._open.append(path)
        direct(path)

    def read(self) -> list[QueueEvent]:
        """Return the events of the lines that were completed since the last call."""
        events: list[QueueEvent] = []
        for line in self._lines.new():
            if found := PROTOCOLS.search(line):
                reason = f"it speaks protocol {found[2]}, and this process {found[3]}"
                events.append(QueueWorkerRefused(found[1], reason))
            elif found := _PASSWORD.search(line):
                events.append(QueueWorkerRefused(found[1], "it has another password, or none"))
        return events

    def close(self) -> None:
        """Close the log."""
        self._open.remove(self._path)
        self._direct(self._open[-1] if self._open else None)
        self._lines.close()


def _number(text: str, name: str) -> int:
    found = re.search(rf'"{name}": *\[? *([0-9.]+)', text)
    return int(float(found[1])) if found else 0
