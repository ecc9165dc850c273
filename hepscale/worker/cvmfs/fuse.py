"""The kernel's file system protocol, spoken on ``/dev/fuse``: messages in and out, read-only.

The structures are those of ``linux/fuse.h``, from 7.27 (Linux 4.18) on. What a kernel does not know
of is left out of the answer to its first message.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import stat
import struct
import threading
import time
from typing import NamedTuple

from .. import syscalls  # noqa: TID252

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .catalog import Entry

__all__ = [
    "ENTRY_SIZE",
    "ROOT",
    "Connection",
    "Opcode",
    "Request",
    "attributes",
    "directory_entry",
    "entry",
    "forgotten",
    "initialise",
    "no_entry",
    "statfs",
]

ROOT = 1
# the kernel asks for room for its largest message: one that writes, which we never get
_BUFFER = 1 << 17
_MAJOR, _MINOR, _LEAST_MINOR = 7, 31, 27
# what is read belongs to a revision that never changes: the kernel may keep it for ever
_FOREVER_S = 10 * 365 * 86_400
_MOST_PAGES = 256
_LOOK_S, _LONGEST_UNMOUNTED_S = 0.001, 60.0
_ID_MASK = 0xFFFFFFFF

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_INIT_IN = struct.Struct("<IIII")
_INIT_OUT = struct.Struct("<IIIIHHIIHH8I")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")
_ATTR_OUT = struct.Struct("<QII")
_DIRENT = struct.Struct("<QQII")
_STATFS = struct.Struct("<QQQQQIIII6I")
_FORGET_ONE = struct.Struct("<QQ")
_INVAL_INODE = struct.Struct("<Qqq")
_INVAL_ENTRY = struct.Struct("<QII")
_SPAN = struct.Struct("<8xQI")
_OPEN_OUT = struct.Struct("<QII")
_KEEP_CACHE, _CACHE_DIR = 1 << 1, 1 << 3
ENTRY_SIZE = _ENTRY.size + _ATTR.size
_NOTIFY_INODE, _NOTIFY_ENTRY = 2, 3
_DEVICE, _CLONE = "/dev/fuse", 0x8004E500
_MOST_DESCRIPTORS = 65536
# of an answer: the kernel no longer waits for it, or it is no longer mounted; of a notice: it never
# knew the node, or the name stands for something that is in use in another way
_HARMLESS = {
    errno.ENOENT,
    errno.ENODEV,
    errno.ENOTCONN,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EBUSY,
}


class Opcode(enum.IntEnum):
    """What the kernel asks for; the others are answered with ENOSYS, and not asked again."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    GETXATTR = 22
    LISTXATTR = 23
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    BATCH_FORGET = 42
    READDIRPLUS = 44


class Flag(enum.IntFlag):
    """What both sides can do."""

    ASYNC_READ = 1 << 0
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25


_WANTED = int(Flag(0)) | sum(Flag)


class Request:
    """One message of the kernel: about a node, with the bytes that follow its header."""

    __slots__ = ("body", "node", "opcode", "pid", "unique")

    def __init__(self, message: memoryview) -> None:
        _, self.opcode, self.unique, self.node, _, _, self.pid, _, _ = _IN.unpack_from(message)
        self.body = bytes(message[_IN.size :])

    @property
    def name(self) -> bytes:
        """The name that the message consists of."""
        return self.body[:-1]


class Terms(NamedTuple):
    """What was agreed with the kernel, and the answer that says so."""

    flags: Flag
    answer: bytes


def initialise(request: Request) -> Terms:
    """Answer the kernel's first message.

    Raises
    ------
    OSError
        EPROTO: the kernel is older than Linux 4.18.
    """
    major, minor, readahead, offered = _INIT_IN.unpack_from(request.body)
    if major > _MAJOR:
        # it asks again, with ours
        return Terms(Flag(0), _init_out(_MINOR, 0, 0))
    if (major, minor) < (_MAJOR, _LEAST_MINOR):
        raise OSError(errno.EPROTO, f"FUSE {major}.{minor}")
    agreed = offered & _WANTED
    return Terms(Flag(agreed), _init_out(min(minor, _MINOR), readahead, agreed))


def _init_out(minor: int, readahead: int, flags: int) -> bytes:
    background, congested, write = 64, 48, 4096
    fields = (minor, readahead, flags, background, congested, write, 1, _MOST_PAGES, 0)
    return _INIT_OUT.pack(_MAJOR, *fields, *[0] * 8)


def _attr(of: Entry) -> bytes:
    seconds, nanoseconds = divmod(of.mtime_ns, 1_000_000_000)
    seconds &= 0xFFFFFFFFFFFFFFFF
    return _ATTR.pack(
        of.inode,
        of.size,
        (of.size + 511) >> 9,
        seconds,
        seconds,
        seconds,
        nanoseconds,
        nanoseconds,
        nanoseconds,
        of.mode,
        of.nlink,
        of.uid & _ID_MASK,
        of.gid & _ID_MASK,
        0,
        4096,
        0,
    )


def attributes(of: Entry) -> bytes:
    """Return the answer to GETATTR."""
    return _ATTR_OUT.pack(_FOREVER_S, 0, 0) + _attr(of)


def entry(node: int, of: Entry) -> bytes:
    """Return the answer to LOOKUP."""
    return _ENTRY.pack(node, 0, _FOREVER_S, _FOREVER_S, 0, 0) + _attr(of)


def no_entry() -> bytes:
    """Return the answer to LOOKUP for a name that is not there: this is remembered as well."""
    return _ENTRY.pack(0, 0, _FOREVER_S, 0, 0, 0) + bytes(_ATTR.size)


def directory_entry(name: bytes, offset: int, mode: int, inode: int) -> bytes:
    """Return one entry of a directory; `offset` is where the next one begins."""
    padding = -len(name) % 8
    return _DIRENT.pack(inode, offset, len(name), stat.S_IFMT(mode) >> 12) + name + b"\0" * padding


def statfs(blocks: int, files: int) -> bytes:
    """Return the answer to STATFS: a full file system, in blocks of 4096 bytes."""
    return _STATFS.pack(blocks, 0, 0, files, 0, 4096, 255, 4096, 0, *[0] * 6)


def forgotten(request: Request) -> Iterator[tuple[int, int]]:
    """Yield the nodes that the kernel drops, each with the number of times it was told of it."""
    if request.opcode == Opcode.FORGET:
        yield request.node, int.from_bytes(request.body[:8], "little")
        return
    count = int.from_bytes(request.body[:4], "little")
    for at in range(count):
        yield _FORGET_ONE.unpack_from(request.body, 8 + at * _FORGET_ONE.size)


def span(request: Request) -> tuple[int, int]:
    """Return offset and size of what READ, READDIR or READDIRPLUS asks for."""
    return _SPAN.unpack_from(request.body)


def wanted_attribute(request: Request) -> tuple[int, bytes]:
    """Return the room for an extended attribute or their list, and the attribute's name."""
    return int.from_bytes(request.body[:4], "little"), request.body[8:-1]


def sized(value: bytes, room: int) -> bytes:
    """Return an extended attribute, or its size where only that was asked for.

    Raises
    ------
    OSError
        ERANGE: the room is too small.
    """
    if not room:
        return struct.pack("<II", len(value), 0)
    if len(value) > room:
        raise OSError(errno.ERANGE, "more than there is room for")
    return value


def opened(agreed: Flag, request: Request) -> bytes:
    """Answer OPEN or OPENDIR.

    Raises
    ------
    OSError
        ENOSYS: the kernel need not ask, and keeps pages and lists of itself.
    """
    directory = request.opcode == Opcode.OPENDIR
    if agreed & (Flag.NO_OPENDIR_SUPPORT if directory else Flag.NO_OPEN_SUPPORT):
        raise OSError(errno.ENOSYS, "not asked again")
    return _OPEN_OUT.pack(0, _KEEP_CACHE | (_CACHE_DIR if directory else 0), 0)


class Connection:
    """The two directions of ``/dev/fuse``; answering is safe from several threads."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._given_up = time.monotonic() + _LONGEST_UNMOUNTED_S

    def receive(self) -> Request | None:
        """Wait for a message; None once the file system is not mounted, or if it never is."""
        while True:
            try:
                length = os.readv(self._descriptor, [self._buffer])
            except OSError as error:
                # ENOENT: who asked was killed before it could be read
                if error.errno in {errno.ENOENT, errno.EINTR, errno.EAGAIN}:
                    continue
                if error.errno == errno.EPERM and time.monotonic() < self._given_up:
                    # not mounted yet, and nothing tells when it will be
                    time.sleep(_LOOK_S)
                    continue
                if error.errno in {errno.ENODEV, errno.EPERM}:
                    return None
                raise
            return Request(self._view[:length])

    def answer(self, unique: int, body: bytes = b"") -> None:
        """Answer a message."""
        head = _OUT.pack(_OUT.size + len(body), 0, unique)
        _write(self._descriptor, head, body)

    def refuse(self, unique: int, number: int) -> None:
        """Answer a message with an error."""
        _write(self._descriptor, _OUT.pack(_OUT.size, -number, unique))

    def drop(self, nodes: Iterable[int], names: Iterable[tuple[int, bytes]]) -> None:
        """Have the kernel forget what it was told, and wait until it has.

        Parameters
        ----------
        nodes
            Their attributes and, of directories, the lists.
        names
            What a name in a directory stands for, or that it is not there.
        """
        notices = [
            _notice(_NOTIFY_ENTRY, _INVAL_ENTRY.pack(number, len(name), 0) + name + b"\0")
            for number, name in names
        ]
        notices += [_notice(_NOTIFY_INODE, _INVAL_INODE.pack(number, 0, 0)) for number in nodes]
        if notices:
            thread = threading.Thread(target=self._tell, args=(notices,), daemon=True)
            thread.start()
            thread.join()

    def _tell(self, notices: list[bytes]) -> None:
        """Write notices, in a thread that has no descriptor by which questions are read.

        The kernel drops a name when those who look into its directory have their answers, and lets
        nobody interrupt that. If this process is killed meanwhile, what it has read is answered
        with an error once the descriptor that it was read from is closed: this thread, which cannot
        end before, must not hold it open.
        """
        descriptor = self._descriptor
        # where this is refused, it goes well as long as nobody is killed
        with contextlib.suppress(OSError):
            # all that is opened from here on is closed with this thread
            syscalls.unshare(syscalls.OWN_DESCRIPTORS)
            second = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
            fcntl.ioctl(second, _CLONE, struct.pack("I", descriptor))
            os.closerange(3, second)
            os.closerange(second + 1, _MOST_DESCRIPTORS)
            descriptor = second
        for notice in notices:
            _write(descriptor, notice)


def _notice(code: int, body: bytes) -> bytes:
    return _OUT.pack(_OUT.size + len(body), code, 0) + body


def _write(descriptor: int, *parts: bytes) -> None:
    try:
        os.writev(descriptor, parts)
    except OSError as error:
        if error.errno not in _HARMLESS:
            raise
