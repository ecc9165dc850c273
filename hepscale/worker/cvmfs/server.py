"""Answers what the kernel asks about a repository."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time

from . import fuse, xattrs
from .content import Content
from .fuse import Opcode
from .nodes import Nodes
from .pool import Pool
from .repository import AGAIN_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Protocol

    from .fuse import Request
    from .names import Name
    from .nodes import Node
    from .repository import Revision

    class Source(Protocol):
        """Where revisions come from: a `Repository`."""

        name: str

        @property
        def wait_s(self) -> float:
            """Until it is to be asked again."""

        def refresh(self, *, now: bool) -> Revision | None:
            """Return a newer revision, if there is one."""


__all__ = ["Server"]

# transfers at once; what is cached is answered beside them
_MOST_WAITING = 16
# how often it is looked whether who waits for an answer was killed meanwhile
_LOOK_S = 0.2
_LEAST_TTL_S = 0.1
_NEVER_S = threading.TIMEOUT_MAX / 2
_SIGKILL_PENDING = 1 << 8


class Server:
    """Answers the kernel's requests about a repository.

    One thread reads them and answers what it can at once; what may have to wait for the network is
    done by others.

    Parameters
    ----------
    connection
        To the kernel.
    source
        Where newer revisions come from.
    revision
        What is served first.
    is_cached
        Whether an object can be opened without the network.
    """

    def __init__(
        self,
        connection: fuse.Connection,
        source: Source,
        revision: Revision,
        is_cached: Callable[[Name], bool],
    ) -> None:
        self._connection = connection
        self._source = source
        self._nodes = Nodes(revision)
        self._pool = Pool(_MOST_WAITING)
        self._content = Content(is_cached, self._pool.put)
        # who waits for an answer of another thread, and which of them got a signal
        self._waiting: dict[int, int] = {}
        self._interrupted: set[int] = set()
        self._wake = threading.Event()
        self._due = 0.0
        self._newest: Revision | None = None
        self._terms = fuse.Terms(fuse.Flag(0), b"")
        self._handlers: Mapping[int, Callable[[Request, Node], bytes]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.READLINK: self._readlink,
            Opcode.OPEN: self._open,
            Opcode.READ: self._read,
            Opcode.STATFS: self._statfs,
            Opcode.RELEASE: self._release,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.INIT: self._init,
            Opcode.OPENDIR: self._open,
            Opcode.READDIR: self._readdir,
            Opcode.RELEASEDIR: self._release,
            Opcode.IOCTL: self._ioctl,
            Opcode.READDIRPLUS: self._readdir,
        }

    def run(self) -> None:
        """Serve until the file system is no longer mounted."""
        threading.Thread(target=self._keep, daemon=True).start()
        while (request := self._connection.receive()) is not None:
            if request.opcode in {Opcode.FORGET, Opcode.BATCH_FORGET}:
                for number, lookups in fuse.forgotten(request):
                    self._nodes.forget(number, lookups)
            elif request.opcode == Opcode.INTERRUPT:
                self._interrupted.add(int.from_bytes(request.body[:8], "little"))
                self._let_go()
                self._wake.set()
            elif request.opcode == Opcode.DESTROY:
                self._connection.answer(request.unique)
            else:
                self._begin(request)

    def _begin(self, request: Request) -> None:
        handler = self._handlers.get(request.opcode)
        # the first message is about none
        node = self._nodes.get(request.node or fuse.ROOT)
        if handler is None or node is None:
            self._connection.refuse(request.unique, errno.ESTALE if handler else errno.ENOSYS)
            return
        approach = self._way(request, node)
        if approach is None:
            self._answer(request, lambda: handler(request, node))
            return

        def job() -> None:
            failed: Exception | None = None
            try:
                approach()
            except Exception as error:
                failed = error
            # from here on nobody else answers, and what the kernel is told of is counted
            if self._waiting.pop(request.unique, None) is not None:
                self._answer(request, lambda: _after(failed, handler, request, node))

        self._waiting[request.unique] = request.pid
        self._pool.put(job)

    def _way(self, request: Request, node: Node) -> Callable[[], None] | None:
        """Return what must be done before a request can be answered at once."""
        if request.opcode in {Opcode.LOOKUP, Opcode.READDIR, Opcode.READDIRPLUS}:
            return None if node.children is not None else lambda: self._nodes.enter(node)
        if request.opcode == Opcode.READ:
            offset, size = fuse.span(request)
            if self._content.is_near(node, offset, size):
                return None
            return lambda: self._content.approach(node, offset, size)
        if request.opcode == Opcode.GETXATTR and node.entry.chunked:
            return lambda: None
        return None

    def _answer(self, request: Request, handler: Callable[[], bytes]) -> None:
        try:
            body = handler()
        except OSError as error:
            self._connection.refuse(request.unique, error.errno or errno.EIO)
        except Exception:
            # one file that cannot be had, whatever the reason, is no reason to end
            sys.excepthook(*sys.exc_info())
            self._connection.refuse(request.unique, errno.EIO)
        else:
            self._connection.answer(request.unique, body)

    def _init(self, request: Request, _node: Node) -> bytes:
        self._terms = fuse.initialise(request)
        return self._terms.answer

    def _lookup(self, request: Request, node: Node) -> bytes:
        name = os.fsdecode(request.name)
        with self._nodes.lock:
            entry = self._nodes.contents(node).get(name)
            if entry is None:
                return fuse.no_entry()
            return fuse.entry(self._nodes.take(node, entry).number, entry)

    def _getattr(self, _request: Request, node: Node) -> bytes:
        return fuse.attributes(node.entry)

    def _readlink(self, _request: Request, node: Node) -> bytes:
        return os.fsencode(node.entry.link)

    def _open(self, request: Request, _node: Node) -> bytes:
        return fuse.opened(self._terms.flags, request)

    def _release(self, _request: Request, _node: Node) -> bytes:
        return b""

    def _read(self, request: Request, node: Node) -> bytes:
        return self._content.read(node, *fuse.span(request))

    def _readdir(self, request: Request, node: Node) -> bytes:
        offset, size = fuse.span(request)
        plus = request.opcode == Opcode.READDIRPLUS
        found, length = [], 0
        with self._nodes.lock:
            children, names = self._nodes.contents(node), [".", "..", *self._nodes.order(node)]
            for at in range(offset, len(names)):
                name = names[at]
                if name is None:
                    continue
                entry = children.get(name, node.entry)
                inode = node.above if at == 1 else entry.inode
                one = fuse.directory_entry(os.fsencode(name), at + 1, entry.mode, inode)
                room = len(one) + (fuse.ENTRY_SIZE if plus else 0)
                if length + room > size:
                    break
                length += room
                if plus:
                    # a node of 0 tells nothing of the directory itself and the one above
                    found.append(
                        bytes(fuse.ENTRY_SIZE)
                        if at < 2
                        else fuse.entry(self._nodes.take(node, entry).number, entry)
                    )
                found.append(one)
        return b"".join(found)

    def _statfs(self, _request: Request, node: Node) -> bytes:
        counters = node.revision.counters
        return fuse.statfs(
            -(-sum(counters.get(f"{of}_file_size", 0) for of in _OF_ALL) // 4096),
            sum(counters.get(f"{of}_{kind}", 0) for of in _OF_ALL for kind in _KINDS),
        )

    def _getxattr(self, request: Request, node: Node) -> bytes:
        size, name = fuse.wanted_attribute(request)
        value = xattrs.value(node, os.fsdecode(name), self._source.name)
        if value is None:
            raise OSError(errno.ENODATA, "no such attribute")
        return fuse.sized(value, size)

    def _listxattr(self, request: Request, node: Node) -> bytes:
        size, _ = fuse.wanted_attribute(request)
        return fuse.sized(b"".join(os.fsencode(name) + b"\0" for name in xattrs.listed(node)), size)

    def _ioctl(self, _request: Request, _node: Node) -> bytes:
        # Python asks of each file that it opens whether it is a terminal
        raise OSError(errno.ENOTTY, "no device")

    def _keep(self) -> None:
        self._due = time.monotonic() + self._wait_s()
        while True:
            left_s = max(0.0, self._due - time.monotonic())
            self._wake.wait(min(left_s, _LOOK_S) if self._interrupted else left_s)
            self._wake.clear()
            self._let_go()
            if time.monotonic() >= self._due:
                self._due = time.monotonic() + _NEVER_S
                self._pool.put(self._refresh)

    def _wait_s(self) -> float:
        # a newer one that could not be read whole is to be had sooner
        longest_s = _NEVER_S if self._newest is None else AGAIN_S
        return max(_LEAST_TTL_S, min(self._source.wait_s, longest_s))

    def _refresh(self) -> None:
        try:
            self._follow()
        except Exception:
            sys.excepthook(*sys.exc_info())
        self._due = time.monotonic() + self._wait_s()
        self._wake.set()

    def _follow(self) -> None:
        # a newer one that could not be read whole is tried again
        self._newest = self._source.refresh(now=True) or self._newest
        if self._newest is None:
            return
        inodes, names = self._nodes.advance(self._newest)
        self._newest = None
        # waits for the answers that are under way
        self._connection.drop(inodes, [(number, os.fsencode(name)) for number, name in names])

    def _let_go(self) -> None:
        """Answer those who were killed: the kernel does not let them go before.

        Another signal does not end a wait, as on any disk.
        """
        for unique in list(self._interrupted):
            pid = self._waiting.get(unique)
            if pid is not None and not _is_killed(pid):
                continue
            self._interrupted.discard(unique)
            if self._waiting.pop(unique, None) is not None:
                self._connection.refuse(unique, errno.EINTR)


_OF_ALL = ("self", "subtree")
_KINDS = ("regular", "symlink", "dir", "special")


def _after(
    failed: Exception | None,
    handler: Callable[[Request, Node], bytes],
    request: Request,
    node: Node,
) -> bytes:
    if failed is not None:
        raise failed
    return handler(request, node)


def _is_killed(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as stream:
            fields = dict(line.split(":", 1) for line in stream)
    except OSError:
        return True
    return any(int(fields[key], 16) & _SIGKILL_PENDING for key in ("SigPnd", "ShdPnd"))
