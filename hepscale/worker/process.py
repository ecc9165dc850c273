"""A child of the forkserver that runs a task: watched while it lives, described at its end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import proc
from .layout import opened

if TYPE_CHECKING:
    import resource

    from .cells import Cell

__all__ = ["NOTHING_LEFT", "TaskProcess"]

# more of what a task prints is not kept
_MOST_OUTPUT_BYTES = 1_000_000
# a task that fails with less room than this on its disk fails for want of it
_LEAST_ROOM_BYTES = 1 << 16
NOTHING_LEFT = {"files": 0, "bytes": 0}
Client = TypeVar("Client")


class TaskProcess(Generic[Client]):
    """The child that runs one task."""

    def __init__(
        self, pid: int, client: Client, request: dict[str, Any], cell: Cell | None
    ) -> None:
        self.pid = pid
        self.cell = cell
        self.client = client
        self.id: str = request["id"]
        self.dir: str = request["dir"]
        self.memory_mb: float | None = request["memory_mb"]
        self.started = time.monotonic()
        # what is imported before a task begins counts as its own
        self.begun_mb = proc.rss_mb(os.getpid())
        self.peak_mb = 0.0
        self.stopped, self.detail = "", ""

    def kill(self, why: str) -> None:
        self.stopped = self.stopped or why
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def watch(self) -> None:
        family = proc.family(self.pid)
        kept_mb = 0.0
        if self.cell is not None:
            # with those whose own parents have ended
            family += proc.family(self.cell.pid)[1:]
            kept_mb = self.cell.used_mb()
        used_mb = kept_mb + sum(map(proc.rss_mb, family))
        if len(family) > 1 and self.memory_mb is not None and used_mb > self.memory_mb:
            # pages that processes share are there once; to find out takes longer
            used_mb = kept_mb + sum(map(proc.pss_mb, family))
        self.peak_mb = max(self.peak_mb, used_mb)
        if self.memory_mb is not None and used_mb > self.memory_mb:
            self.kill("memory")
            self.detail = f"it had {used_mb:.0f} MB, {self.begun_mb:.0f} MB of that from the start"
        for name in ("stdout", "stderr"):
            _cut_output(self.dir, name)

    def ended(self, code: int, used: resource.struct_rusage) -> dict[str, Any]:
        self.peak_mb = max(self.peak_mb, used.ru_maxrss / 1e3)
        left = NOTHING_LEFT
        if self.cell is not None:
            self.peak_mb = max(self.peak_mb, self.cell.used_mb())
            left = self.cell.close()
        status, detail = "done", self.detail
        if self.stopped:
            status = self.stopped
        elif code:
            status = "died"
            detail = f"exit code {code}" if code > 0 else f"signal {-code} ({_signal_name(-code)})"
            if code > 0 and _is_full(self.dir):
                detail += ", its folder is full"
        return {
            "ev": "ended",
            "id": self.id,
            "status": status,
            "detail": detail,
            "wall_s": time.monotonic() - self.started,
            "cpu_s": used.ru_utime + used.ru_stime,
            "memory_mb": self.peak_mb,
            "left": left,
        }


def _is_full(folder: str) -> bool:
    with contextlib.suppress(OSError):
        there = os.statvfs(folder)
        return there.f_bavail * there.f_frsize < _LEAST_ROOM_BYTES
    return False


def _cut_output(folder: str, name: str) -> None:
    with contextlib.suppress(OSError):
        if os.lstat(os.path.join(folder, name)).st_size > _MOST_OUTPUT_BYTES:
            with open(opened(folder, name, os.O_RDWR), "r+b") as stream:
                stream.truncate(0)
                stream.write(b"[more output than is kept was dropped here]\n")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
