"""Finds a port for a queue, and says who has it where it is taken."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from hepscale.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["listen", "sockets_of"]

_RANDOM_TRIES = 20
_BACKLOG = 1024


def listen(port: int | tuple[int, int], create: Callable[[int], bool]) -> int:
    """Call `create` with ports of `port` until it succeeds, and return the one.

    Raises
    ------
    EngineError
        If none of them is free.
    """
    if port == 0:
        for _ in range(_RANDOM_TRIES):
            with socket.socket() as free:
                free.bind(("", 0))
                chosen: int = free.getsockname()[1]
            if create(chosen):
                return _widened(chosen)
        raise EngineError("No port to listen on was found.", fix="give one: port=9123")
    first, last = port if isinstance(port, tuple) else (port, port)
    for chosen in range(first, last + 1):
        if create(chosen):
            return _widened(chosen)
    if _forbidden(first):
        raise EngineError(
            f"Port {first} cannot be listened on by this user.",
            cause="ports below 1024 belong to the system",
            fix="give another port, or port=0 for any free one",
        )
    what = f"Port {first} is taken." if first == last else f"Ports {first} to {last} are all taken."
    raise EngineError(
        what,
        items=[holder] if (holder := _holder(first)) else [],
        cause="another run, perhaps of this very notebook, or another program listens there",
        fix="end the other run, give a range, port=(9123, 9199), or port=0 for any free one",
    )


def sockets_of(port: int) -> Iterator[tuple[int, socket.socket]]:
    """Yield the sockets of this process that listen on a port, or were accepted there.

    Each with its number, and open as long as the loop is at it.
    """
    for path in Path("/proc/self/fd").iterdir():
        try:
            if not path.is_socket():
                continue
            with socket.socket(fileno=os.dup(int(path.name))) as found:
                if (
                    found.family in (socket.AF_INET, socket.AF_INET6)
                    and found.getsockname()[1] == port
                ):
                    yield int(path.name), found
        except OSError:
            # closed meanwhile
            continue


def _widened(port: int) -> int:
    """Let more than the library's five workers knock at once; others would be turned away."""
    for _, found in sockets_of(port):
        if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            found.listen(_BACKLOG)
    return port


def _forbidden(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError as error:
            return error.errno == errno.EACCES
    return False


def _holder(port: int) -> str:
    """Name the process that listens on `port`, where this user may know it."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
        except OSError:
            continue
        # state 0A is LISTEN
        inodes |= {row[9] for row in rows if row[3] == "0A" and int(row[1][-4:], 16) == port}
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(fd.readlink()) in wanted for fd in (process / "fd").iterdir()):
                words = (process / "cmdline").read_bytes().split(b"\0")
                command = b" ".join(words).decode(errors="replace").strip()
                return f"process {process.name}: {command[:120]}"
        except OSError:
            continue
    return ""
