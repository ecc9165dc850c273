"""A kernel's side of a mount, over a socket in place of ``/dev/fuse``, and trees in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import stat
import struct
import threading
import zlib
from typing import Any

from hepscale.worker.cvmfs import ObjectError, fuse
from hepscale.worker.cvmfs.fuse import Opcode
from hepscale.worker.cvmfs.server import Server

HEADER = struct.Struct("<IIQQIIIHH")


@dataclasses.dataclass(frozen=True)
class Entry:
    """What of a catalog's entry is needed here."""

    path: str
    mode: int = stat.S_IFREG | 0o644
    size: int = 0
    inode: int = 0
    mtime_ns: int = 1_700_000_000_123_456_789
    uid: int = 4294967295
    gid: int = 100
    nlink: int = 1
    link: str = ""
    rawlink: str = ""
    object: Any = None
    compressed: bool = True
    chunked: bool = False
    hidden: bool = False
    external: bool = False
    xattrs: Any = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A part of a file."""

    offset: int
    size: int
    object: Any


@dataclasses.dataclass(frozen=True)
class Name:
    """The name of an object."""

    text: str

    @property
    def path(self) -> str:
        return f"data/{self.text}"


class Revision:
    """A tree in memory; what `slow` names is waited for."""

    def __init__(self, files: dict[str, Any], number: int = 1, ttl_s: float = 600.0) -> None:
        self.number, self.root, self.ttl_s = number, Name(f"{number:040x}"), ttl_s
        self.notice = ""
        self.counters = {"self_regular": 3, "subtree_dir": 4, "self_file_size": 4097}
        self.contents: dict[str, list[bytes]] = {}
        self.entries = {"": Entry("", stat.S_IFDIR | 0o755, inode=2)}
        self.slow: dict[str, threading.Event] = {}
        self.opened: list[str] = []
        for path, given in files.items():
            self.entries[path] = self._entry(path, given)

    def _entry(self, path: str, given: Any) -> Entry:
        inode = zlib.crc32(os.fsencode(path)) + 10
        if given is None:
            return Entry(path, stat.S_IFDIR | 0o755, inode=inode)
        if isinstance(given, Entry):
            return dataclasses.replace(given, path=path, inode=inode)
        parts = given if isinstance(given, list) else [given]
        self.contents[path] = parts
        size = sum(map(len, parts))
        return Entry(
            path,
            size=size,
            inode=inode,
            object=None if len(parts) > 1 else Name(str(given)),
            chunked=len(parts) > 1,
        )

    def entry(self, path: str) -> Entry | None:
        return self.entries.get(path)

    def children(self, path: str) -> dict[str, Entry]:
        if path in self.slow:
            self.opened.append(path)
            assert self.slow[path].wait(10)
        return {
            one.rpartition("/")[2]: entry
            for one, entry in self.entries.items()
            if one and one.rpartition("/")[0] == path
        }

    def chunks(self, entry: Entry) -> list[Chunk]:
        found, offset = [], 0
        for part in self.contents[entry.path]:
            if part:
                found.append(Chunk(offset, len(part), Name(f"{entry.path}@{offset}")))
            offset += len(part)
        return found

    def open_chunk(self, entry: Entry, chunk: Chunk) -> int:
        self.opened.append(chunk.object.text)
        if entry.path in self.slow:
            assert self.slow[entry.path].wait(10)
        if "broken" in entry.path:
            raise ObjectError("damaged", chunk.object.text)
        content = b"".join(self.contents[entry.path])[chunk.offset :][: chunk.size]
        descriptor = os.memfd_create("chunk", os.MFD_CLOEXEC)
        os.write(descriptor, content[:-1] if "short" in entry.path else content)
        return descriptor


class Kernel:
    """The other side: it asks, and reads answers and notices."""

    def __init__(self, revision: Revision, newer: list[Revision]) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.settimeout(10)
        self.revision, self.newer, self.name = revision, newer, "demo.example.org"
        self.wait_s = revision.ttl_s
        self._theirs, self._last = theirs, 0
        self.server = Server(fuse.Connection(theirs.fileno()), self, revision, lambda _: False)
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(struct.error):
            # an empty message is the end of a socket, which /dev/fuse has not got
            self.server.run()

    def refresh(self, *, now: bool) -> Revision | None:
        if not self.newer:
            return None
        self.wait_s = self.newer[0].ttl_s
        return self.newer.pop(0)

    def send(self, opcode: int, node: int = 1, body: bytes = b"", pid: int = 0) -> int:
        self._last += 2
        head = HEADER.pack(HEADER.size + len(body), opcode, self._last, node, 0, 0, pid, 0, 0)
        self.ours.send(head + body)
        return self._last

    def receive(self) -> tuple[int, int, bytes]:
        message = self.ours.recv(1 << 21)
        length, error, unique = struct.unpack_from("<IiQ", message)
        assert length == len(message)
        return unique, error, message[16:]

    def ask(self, opcode: int, node: int = 1, body: bytes = b"") -> bytes:
        unique = self.send(opcode, node, body)
        answered, error, answer = self.receive()
        assert answered == unique
        if error:
            raise OSError(-error, os.strerror(-error))
        return answer

    def look_up(self, name: str, node: int = 1) -> int:
        answer = self.ask(Opcode.LOOKUP, node, os.fsencode(name) + b"\0")
        assert len(answer) == 128
        return struct.unpack_from("<Q", answer)[0]

    def read(self, node: int, offset: int = 0, size: int = 4096) -> bytes:
        return self.ask(Opcode.READ, node, struct.pack("<QQIIQII", 0, offset, size, 0, 0, 0, 0))

    def list(self, offset: int = 0, size: int = 4096, node: int = 1) -> list[tuple[str, int]]:
        body = struct.pack("<QQIIQII", 0, offset, size, 0, 0, 0, 0)
        answer, found, at = self.ask(Opcode.READDIR, node, body), [], 0
        while at < len(answer):
            _, following, length, _ = struct.unpack_from("<QQII", answer, at)
            found.append((os.fsdecode(answer[at + 24 : at + 24 + length]), following))
            at += 24 + (length + 7) // 8 * 8
        return found

    def names(self) -> list[str]:
        return [name for name, _ in self.list()][2:]

    def close(self) -> None:
        self.ours.close()
        self.thread.join(10)
        assert not self.thread.is_alive()
        self._theirs.close()
