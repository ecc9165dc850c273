"""Reads what the libraries write about workers: the only place where they say it."""

from __future__ import annotations

import os
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

__all__ = ["PROTOCOLS", "NoticeLog", "TransactionLog", "VineLog"]

_LEFT = {
    "IDLE_OUT": "it was idle for too long",
    "FAST_ABORT": "it was too slow",
    "FAILURE": "its connection was lost",
    "STATUS_WORKER": "it only asked for the status",
    "EXPLICIT": "it was sent away",
}

# of Work Queue and of TaskVine
PROTOCOLS = re.compile(
    r"worker \((\S+)\) (?:is using work queue|as it uses) protocol (\d+)\b.* protocol (\d+)"
)
_PASSWORD = re.compile(r"worker (\S+) presented the wrong password")


class _Lines:
    """The lines of a file that grows."""

    def __init__(self, path: Path) -> None:
        self._stream = open(path, "rb")  # noqa: SIM115
        self._rest = b""

    def new(self) -> list[str]:
        """Return the lines that were completed since the last call."""
        *lines, self._rest = (self._rest + self._stream.read()).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def cut(self, most_bytes: int) -> None:
        """Empty the file if it is larger; what appends to it goes on at its beginning."""
        if self._stream.tell() > most_bytes:
            os.truncate(self._stream.name, 0)
            self._stream.seek(0)

    def close(self) -> None:
        self._stream.close()


class TransactionLog:
    """The log of workers that join and leave, and of where tasks go.

    Attributes
    ----------
    ended
        The tasks that the library has, at the last read, ready to be taken.
    """

    def __init__(self, path: Path) -> None:
        self.ended: set[int] = set()
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
                events.append(QueueTaskPlaced(int(words[3]), self._place(words[5].split()[0])))
            elif words[2] == "TASK" and words[4] == "RETRIEVED":
                self.ended.add(int(words[3]))
            elif words[2] == "TASK" and words[4] in ("DONE", "CANCELED"):
                self.ended.discard(int(words[3]))
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
            return
        address, what, reason = self._connection(words)
        if what == "CONNECTION":
            self._addresses[worker_id] = address
        elif what == "DISCONNECTION":
            address = self._addresses.pop(worker_id, address)
            if worker_id in self._joined:
                self._joined.remove(worker_id)
                yield QueueWorkerLeft(address, worker_id, _LEFT.get(reason, "it went away"))

    def _connection(self, words: list[str]) -> tuple[str, str, str]:
        """Return address, what happened, and why."""
        what, _, reason = words[1].partition(" ")
        return words[0], what, reason.strip()

    def _place(self, word: str) -> str:
        """Return the address of the worker that a task was given to."""
        return word


class VineLog(TransactionLog):
    """That of TaskVine, which names workers by their ids."""

    def _connection(self, words: list[str]) -> tuple[str, str, str]:
        address = words[1] if words[0] == "CONNECTION" else ""
        return address, words[0], "" if address else " ".join(words[1:]).strip()

    def _place(self, word: str) -> str:
        return self._addresses.get(word, word)


class NoticeLog:
    """The log of what the library complains about.

    The library has one for all queues of a process: it is that of the newest queue.

    Parameters
    ----------
    path
        Where it goes.
    direct
        Has the library write it there; None: to the standard error. Not given: it writes there.
    most_bytes
        How large it may become.
    """

    _open: ClassVar[list[Path]] = []

    def __init__(
        self,
        path: Path,
        direct: Callable[[Path | None], None] | None = None,
        most_bytes: int | None = None,
    ) -> None:
        path.touch()
        self._lines = _Lines(path)
        self._path, self._direct, self._most_bytes = path, direct, most_bytes
        if direct is not None:
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
        if self._most_bytes is not None:
            self._lines.cut(self._most_bytes)
        return events

    def close(self) -> None:
        """Close the log."""
        if self._direct is not None:
            self._open.remove(self._path)
            self._direct(self._open[-1] if self._open else None)
        self._lines.close()


def _number(text: str, name: str) -> int:
    found = re.search(rf'"{name}": *\[? *([0-9.]+)', text)
    return int(float(found[1])) if found else 0
