"""Serves the libraries of ``ndcctools`` turn by turn, without the interpreter's lock."""

from __future__ import annotations

import ctypes
import os
import select
import time
from typing import TYPE_CHECKING, Any

from hepscale.executor.engines.queue_listen import sockets_of
from hepscale.executor.engines.queue_silence import Silence

if TYPE_CHECKING:
    from types import ModuleType

    from hepscale.executor.engines.queue import QueueOptions

__all__ = ["NEVER_S", "Turns"]

# as many seconds as a C int takes, and more than a run does
NEVER_S = 2**30

# no task has it: what has ended stays for the library's own wait, which knows whose it is
_TAG = b"hepscale-none"
# takes the place of a child process that has ended, at which the library's loop returns
_CHILD = ctypes.create_string_buffer(1024)
# how often workers that came unnoticed are looked for, and how long they may wait
_LOOK_S, _PATIENCE_S = 1.0, 0.1


class Turns:
    """The loop of a library, one round at a time.

    Its own wait takes whole seconds and holds the interpreter's lock meanwhile, so that other
    threads stand still; it ends this process when it gives up a silent worker ("cctools bug", 8.0).
    Here it does what there is to do and returns, without the lock. It still asks workers for signs
    of life; the connection of one that gives none is shut, which it stands well.

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
        self._silence = Silence(port, options.keepalive_interval_s + options.keepalive_timeout_s)
        self._poll = select.poll()
        self._sockets: dict[int, int] = {}
        self._looked_s = float("-inf")

    def take(self) -> None:
        """Have the library do what there is to do."""
        with self._silence:
            self._wait(self._queue, _TAG, 1)
        if time.monotonic() - self._looked_s >= _LOOK_S:
            self._look()

    def news(self, timeout_s: float) -> bool:
        """Return whether there is to do; wait for it, though not always to the end."""
        if self._sockets != _present(self._sockets):
            self._look()
        return bool(self._poll.poll(min(timeout_s, _PATIENCE_S) * 1000))

    def close(self) -> None:
        """Take no more turns."""
        self._silence.close()

    def _look(self) -> None:
        """Find the connections that there are."""
        self._looked_s = time.monotonic()
        self._sockets, self._poll = {}, select.poll()
        for number, found in sockets_of(self._port):
            self._sockets[number] = os.fstat(found.fileno()).st_ino
            self._poll.register(number, select.POLLIN)


def _present(sockets: dict[int, int]) -> dict[int, int]:
    """Return those that are still what they were; a closed one's number goes to another file."""
    found = {}
    for number in sockets:
        try:
            found[number] = os.fstat(number).st_ino
        except OSError:
            continue
    return found
