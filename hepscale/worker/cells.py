"""The root of a task: its own files, a private ``/tmp``, what it may see, and nothing else.

A cell is made by a small process, the nursery, that the forkserver has forked before it imported
anything: what a cell needs to live is process 1 in it, which is a copy of the nursery. The task's
own process is a child of the forkserver that is forked right into the cell. When the forkserver
lets go of a cell, or dies, process 1 ends and the kernel with it ends whatever the task has left.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket

from . import syscalls

__all__ = ["Cell", "CellError"]

_NAMESPACES = {"ipc": syscalls.NEW_IPC, "net": syscalls.NEW_NET, "mnt": syscalls.NEW_MOUNTS}


class CellError(Exception):
    """A cell cannot be made."""


class Cell:
    """A root for one task; `pid` is its process 1, as the forkserver sees it."""

    def __init__(
        self, pid: int, connection: socket.socket, private: list[str], *, network: bool
    ) -> None:
        self.pid = pid
        self._connection = connection
        names = [name for name in _NAMESPACES if name != "net" or not network]
        top = f"/proc/{pid}"
        self._opened = {name: _opened(f"{top}/ns/{name}") for name in ("pid", *names)}
        self._root = os.open(f"{top}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # they are on one device
        self._private = [
            os.open(path.lstrip("/"), os.O_PATH | os.O_CLOEXEC, dir_fd=self._root)
            for path in private[:1]
        ]

    def fork(self) -> int:
        """Fork this process; the child is in the cell, as far as processes are concerned.

        Raises
        ------
        OSError
            The cell has ended.
        """
        before = _opened("/proc/self/ns/pid")
        try:
            syscalls.join(self._opened["pid"], syscalls.NEW_PIDS)
            pid = os.fork()
            if pid:
                # refused to all but root; then the next cell takes its place, and until then no
                # threads can be started, which a process that forks must not have anyway
                with contextlib.suppress(OSError):
                    syscalls.join(before, syscalls.NEW_PIDS)
            return pid
        finally:
            os.close(before)

    def enter(self) -> None:
        """Enter the cell for good, without any privilege."""
        for name, flag in _NAMESPACES.items():
            if name in self._opened:
                syscalls.join(self._opened[name], flag)
        # the top of its mounts may be another folder: one from which this root was a chroot
        os.fchdir(self._root)
        os.chroot(".")
        syscalls.drop_privileges()

    def used_mb(self) -> float:
        """Return how much memory the private folders take."""
        there = [os.fstatvfs(one) for one in self._private]
        return sum((one.f_blocks - one.f_bfree) * one.f_frsize for one in there) / 1e6

    def close(self) -> dict[str, int]:
        """End what runs in it, and return what was left: ``files`` and ``bytes``."""
        left = {"files": 0, "bytes": 0}
        with contextlib.suppress(OSError, ValueError):
            self._connection.shutdown(socket.SHUT_WR)
            with self._connection.makefile("r") as stream:
                left |= json.loads(stream.readline())
        with contextlib.suppress(ProcessLookupError):
            # it ends by itself, unless it does not answer
            os.kill(self.pid, signal.SIGKILL)
        self._connection.close()
        for one in (*self._opened.values(), self._root, *self._private):
            os.close(one)
        return left


def _opened(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
