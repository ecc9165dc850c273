"""Serves the libraries of ``ndcctools`` turn by turn, and gives up workers that fall silent."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

from hepscale.executor.engines.queue_listen import sockets_of

if TYPE_CHECKING:
    from types import ModuleType

    from hepscale.executor.engines.queue import QueueOptions

__all__ = ["Turns"]

# no task has it: what has ended stays for the library's own wait, which knows whose it is
_TAG = b"hepscale-none"
# takes the place of a child process that has ended, at which the library's loop returns
_CHILD = ctypes.create_string_buffer(1024)
# how often workers that came unnoticed are looked for, and how long they may wait
_LOOK_S, _PATIENCE_S = 1.0, 0.1
# in struct tcp_info, milliseconds
_LAST_RECEIVED = struct.Struct("=52xI")


class Turns:
    """The loop of a library, one round at a time.

    Its own wait takes whole seconds and holds the interpreter's lock meanwhile, so that other
    threads stand still; it ends this process when it gives up a silent worker ("cctools bug", 8.0).
    Here it does what there is to do and returns, without the lock. It still asks workers for signs
    of life. The connection of one that gives none is shut, which it stands well.

    Parameters
    ----------
    library
        Its extension module.
    wait, shortcut
        The functions that run its loop, and have it return once a child process has ended.
    queue
        What these functions take.
    port
        Where it listens.
    options
        For how long a worker may be silent.
    """

    def __init__(
        self,
        library: ModuleType,
        wait: str,
        shortcut: str,
        queue: Any,
        port: int,
        options: QueueOptions,
    ) -> None:
        # the module's own copy of the library: it is loaded already
        functions = ctypes.CDLL(library.__file__)
        self._wait = functions[wait]
        self._wait.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
        self._wait.restype = ctypes.c_void_p
        self._queue = ctypes.c_void_p(int(queue))
        # before the shortcut, which would else reap the children of this process
        functions["process_putback"](_CHILD)
        functions[shortcut](self._queue)
        self._port = port
        self._interval_s = options.keepalive_interval_s
        self._silent_s = options.keepalive_interval_s + options.keepalive_timeout_s
        self._poll = select.poll()
        self._sockets: dict[int, int] = {}
        self._quiet_s: dict[int, float] = {}
        self._looked_s = float("-inf")

    def take(self) -> None:
        """Have the library do what there is to do."""
        self._wait(self._queue, _TAG, 1)

    def news(self, timeout_s: float) -> bool:
        """Return whether there is to do; wait for it, though not always to the end."""
        now = time.monotonic()
        if now - self._looked_s >= _LOOK_S or self._sockets != _present(self._sockets):
            self._look(now)
        return bool(self._poll.poll(min(timeout_s, _PATIENCE_S) * 1000))

    def _look(self, now: float) -> None:
        """Find the connections that there are, and shut those of silent workers."""
        elapsed_s, self._looked_s = now - self._looked_s, now
        self._sockets, self._poll = {}, select.poll()
        quiet_s, self._quiet_s = self._quiet_s, {}
        for number, found in sockets_of(self._port):
            inode = os.fstat(number).st_ino
            self._sockets[number] = inode
            self._poll.register(number, select.POLLIN)
            if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                continue
            info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_RECEIVED.size)
            if _LAST_RECEIVED.unpack(info)[0] / 1000 > elapsed_s:
                # of a time in which nobody was asked, not more than between two questions
                silent_s = quiet_s.get(inode, 0.0) + min(elapsed_s, self._interval_s)
                self._quiet_s[inode] = silent_s
                if silent_s > self._silent_s:
                    found.shutdown(socket.SHUT_RDWR)


def _present(sockets: dict[int, int]) -> dict[int, int]:
    """Return those that are still what they were; a closed one's number goes to another file."""
    found = {}
    for number in sockets:
        try:
            found[number] = os.fstat(number).st_ino
        except OSError:
            continue
    return found
