"""Records of workers that were started together: what a later process finds them by."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepscale.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hepscale.config import Settings
    from hepscale.workers.plan import BatchName

__all__ = [
    "Group",
    "Here",
    "Process",
    "every",
    "find",
    "forget",
    "here",
    "keep",
    "note_here",
    "write",
]

_RECORD = "record.json"
_HERE = "here.json"


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told from a later one of the same number.

    Attributes
    ----------
    pid
        Its number.
    begun_ticks
        When it began, in clock ticks since the machine did.
    """

    pid: int
    begun_ticks: int

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return what identifies a process now; `begun_ticks` is 0 if it has ended."""
        try:
            # the name in parentheses may hold anything
            fields = (
                Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            )
        except OSError:
            return cls(pid, 0)
        return cls(pid, 0 if fields[0] in "ZX" else int(fields[19]))

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.begun_ticks > 0 and Process.of(self.pid) == self


@dataclass(frozen=True, slots=True)
class Group:
    """Workers that were started together.

    Attributes
    ----------
    folder
        Where its record, scripts and logs are; its name is what users call it.
    batch
        Who started it.
    address
        The manager that it serves.
    count
        How many workers were asked for.
    cores, memory_mb
        Of each worker.
    started_s
        When, in seconds since 1970.
    host
        The machine that it was started from.
    job
        What the batch system calls it; empty on this machine.
    supervisor
        The parent of workers of this machine.
    workers
        The workers of this machine that were started first.
    owner
        The process that it ends with; None: it stays.
    """

    folder: Path
    batch: BatchName
    address: str
    count: int
    cores: int
    memory_mb: int
    started_s: float
    host: str
    job: str
    supervisor: Process | None
    workers: tuple[Process, ...]
    owner: Process | None

    @property
    def id(self) -> str:
        """What users call it."""
        return self.folder.name


@dataclass(frozen=True, slots=True)
class Here:
    """How the workers of a group of this machine fare.

    Attributes
    ----------
    workers
        Those that were last seen.
    killed
        How many have been.
    given_up
        Whether no more are started in place of those.
    """

    workers: tuple[Process, ...]
    killed: int = 0
    given_up: bool = False


def note_here(folder: Path, pids: Iterable[int], killed: int, given_up: bool) -> None:
    """Write how the workers fare that have this folder.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    noted = Here(tuple(map(Process.of, pids)), killed, given_up)
    write(folder / _HERE, json.dumps(asdict(noted)), 0o600)


def here(group: Group) -> Here:
    """Return how the workers of a group of this machine fare."""
    try:
        told = json.loads((group.folder / _HERE).read_text())
    except (OSError, ValueError):
        return Here(group.workers)
    return Here(tuple(Process(**one) for one in told["workers"]), told["killed"], told["given_up"])


def keep(group: Group) -> None:
    """Write the record of a group.

    Raises
    ------
    OSError
        If its folder cannot be written.
    """
    write(group.folder / _RECORD, json.dumps(asdict(group), default=str), 0o600)


def every(settings: Settings) -> list[Group]:
    """Return the groups that there are records of, the newest first."""
    found = []
    for path in (settings.cache_dir / "workers").glob(f"*/{_RECORD}"):
        # another process may be removing it
        with suppress(OSError, ValueError, KeyError, TypeError):
            found.append(_group(path.parent, json.loads(path.read_text())))
    return sorted(found, key=lambda group: -group.started_s)


def find(settings: Settings, identity: str) -> Group:
    """Return the group that a user means.

    Raises
    ------
    ConfigError
        If there is none of this name.
    """
    for group in every(settings):
        if group.id == identity:
            return group
    raise ConfigError(
        f"There are no workers {identity!r}.",
        cause="they were stopped, or started with another HEPSCALE_CACHE_DIR",
        fix="hepscale workers list",
    )


def forget(group: Group) -> None:
    """Remove the record, the scripts and the logs of a group."""
    # the record last: without it nobody would find the rest
    for path in sorted(group.folder.glob("*"), key=lambda path: path.name == _RECORD):
        with suppress(OSError):
            path.unlink()
    shutil.rmtree(group.folder, ignore_errors=True)


def write(path: Path, text: str, mode: int) -> None:
    """Write a file so that nobody sees half of it, or sees it with another mode.

    Raises
    ------
    OSError
        If its folder cannot be written.
    """
    begun = path.with_name(f".{path.name}")
    opened = os.open(begun, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(opened, "w", encoding="utf-8") as stream:
        stream.write(text)
    begun.rename(path)


def _group(folder: Path, told: dict[str, Any]) -> Group:
    processes = {
        key: Process(**told[key]) if told[key] else None for key in ("supervisor", "owner")
    }
    workers = tuple(Process(**one) for one in told["workers"])
    return Group(**{**told, **processes, "folder": folder, "workers": workers})
