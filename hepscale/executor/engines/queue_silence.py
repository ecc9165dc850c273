"""Gives up workers that have fallen silent, for libraries that cannot do so themselves."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time

from hepscale.executor.engines.queue_listen import sockets_of

__all__ = ["Silence"]

_LOOK_S = 1.0
# in struct tcp_info: milliseconds since data were sent, and since data came
_TIMES = struct.Struct("=44xI4xI")


class Silence:
    """A thread that shuts the connections of workers which were asked and do not answer.

    A thread, because the library may be reading from just such a worker, with TLS for ever. What
    counts is the time during which it serves workers; so long as it sends, it cannot ask others.

    Parameters
    ----------
    port
        At which the workers came in.
    patience_s
        How long they may take.
    """

    def __init__(self, port: int, patience_s: float) -> None:
        self._port, self._patience_s = port, patience_s
        self._since_s: float | None = None
        self._served = False
        self._silent_s: dict[int, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hepscale-silence", daemon=True)
        self._thread.start()

    def __enter__(self) -> None:
        self._since_s = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._since_s, self._served = None, True

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            since_s, served = self._since_s, self._served
            self._served = False
            if since_s is not None:
                self._look(time.monotonic() - since_s)
            elif served:
                self._look(0.0)

    def _look(self, turn_s: float) -> None:
        """Add up the silence of each worker; `turn_s` is how long the library has been at it."""
        times = {}
        for _, found in sockets_of(self._port):
            if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TIMES.size)
                times[_inode(found)] = _TIMES.unpack(info)
        if turn_s > _LOOK_S and any(sent < _LOOK_S * 1000 for sent, _ in times.values()):
            return
        # the clock is coarse: an answer may seem to be of the moment of its question
        doubtful = turn_s > 2 * self._patience_s
        self._silent_s = {
            inode: self._silent_s.get(inode, 0.0) + _LOOK_S
            for inode, (sent, received) in times.items()
            if received > sent or (doubtful and received == sent)
        }
        given_up = {one for one, silent_s in self._silent_s.items() if silent_s > self._patience_s}
        for _, found in sockets_of(self._port) if given_up else ():
            if _inode(found) in given_up:
                found.shutdown(socket.SHUT_RDWR)


def _inode(found: socket.socket) -> int:
    return os.fstat(found.fileno()).st_ino
