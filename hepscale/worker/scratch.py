"""Scratch folders that are removed for certain, also when their owner is killed.

Each folder holds a file ``lock`` that its owner keeps locked as long as it lives; the kernel
releases the lock however the owner ends. A folder whose lock is free belongs to nobody: whoever
comes next removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile

from . import READY

__all__ = ["hold_environment", "listen", "make", "prefix", "sweep"]

_PREFIX = "hepscale"


def prefix() -> str:
    """Return how the names of these folders begin."""
    return f"{_PREFIX}-{os.getuid()}-"


def make(parent: str) -> tuple[str, int]:
    """Make a folder below `parent`, private to the user, and lock it.

    Returns
    -------
    tuple
        Its path, and the descriptor that holds the lock: keep it open as long as the folder is
        needed, or pass it on to the process that owns the folder.

    Raises
    ------
    OSError
        If `parent` cannot be written.
    """
    # under another name first: `sweep` must not find it before it is locked
    begun = tempfile.mkdtemp(prefix=f".{_PREFIX}-", dir=parent)
    opened = os.open(os.path.join(begun, "lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    # a daemon has closed 0 to 2, which a process that we start gets anew
    lock = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(opened)
    fcntl.flock(lock, fcntl.LOCK_EX)
    path = os.path.join(parent, prefix() + os.path.basename(begun).rpartition("-")[2])
    os.rename(begun, path)
    return path, lock


def sweep(parent: str) -> list[str]:
    """Remove the folders of this user below `parent` that belong to nobody; return their paths."""
    removed = []
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(parent) if name.startswith(prefix())]
        for name in names:
            path = os.path.join(parent, name)
            if _is_stale(path):
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path)
    return removed


def hold_environment(environment: str) -> int:
    """Lock the mark of an unpacked environment, so that nobody removes it.

    Returns
    -------
    int
        The descriptor that holds the lock; -1 where it is no such environment, or no more.
    """
    path = os.path.join(environment, READY)
    try:
        mark = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    # a file system without locks: nobody else can lock it either
    with contextlib.suppress(OSError):
        # whoever removes it has locked it too, and removes the mark first
        fcntl.flock(mark, fcntl.LOCK_SH)
    if os.path.exists(path):
        return mark
    os.close(mark)
    return -1


def listen(folder: str, made: int | None = None) -> socket.socket:
    """Return what listens to clients in a folder; `made`: the descriptor of one that does already.

    Parrot lets no process make one by a relative name.
    """
    if made is not None:
        os.set_inheritable(made, False)
        return socket.socket(fileno=made)
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    # by a relative name: the path of a socket may have 107 bytes only
    os.chdir(folder)
    listener.bind("s")
    os.chdir(here)
    listener.listen(64)
    return listener


def _is_stale(path: str) -> bool:
    try:
        lock = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        # its owner has removed all of it but the folder, into which somebody wrote just then
        with contextlib.suppress(OSError):
            os.rmdir(path)
        return False
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(lock)
