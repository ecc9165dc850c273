"""Digests of plain bytes, kept beside a cache's objects.

A cache keeps objects decompressed, under the digest of what was compressed: the name of an object
does not tell whether its bytes are still the right ones. So a line for each object is added to one
of 256 files when it is stored: ``<name> <SHA-256> <size>``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import zlib
from typing import TYPE_CHECKING, NamedTuple

from .names import Hasher, Name, hasher

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["Digests", "Plain", "is_told", "plain_hasher", "plain_of"]

_BLOCK_BYTES = 1 << 18
_LINE = re.compile(rb"^(\S+) ([0-9a-f]{64}) ([0-9]{1,18})$", re.MULTILINE)


class Plain(NamedTuple):
    """What is known of an object's plain bytes."""

    digest: bytes
    size: int


def plain_hasher() -> Hasher:
    """Return what makes the digest of plain bytes."""
    return hashlib.sha256(usedforsecurity=False)


def plain_of(descriptor: int) -> Plain:
    """Return digest and size of an open file."""
    digest, size = plain_hasher(), 0
    for block in _blocks(descriptor):
        digest.update(block)
        size += len(block)
    return Plain(digest.digest(), size)


def is_told(descriptor: int, name: Name) -> bool:
    """Return whether an open file is told to be the object `name` by the name alone.

    It is if its bytes have that digest as they are, or after zlib's default compression; else it
    is damaged, or was compressed otherwise.
    """
    plain, stored, packer = hasher(name.algorithm), hasher(name.algorithm), zlib.compressobj()
    for block in _blocks(descriptor):
        plain.update(block)
        stored.update(packer.compress(block))
    stored.update(packer.flush())
    return name.digest in (plain.digest(), stored.digest())


def _blocks(descriptor: int) -> Iterator[memoryview]:
    buffer, at = memoryview(bytearray(_BLOCK_BYTES)), 0
    while length := os.preadv(descriptor, [buffer], at):
        yield buffer[:length]
        at += length


class Digests:
    """The 256 files of digests of one cache, in a folder.

    Appending is atomic; `compact` needs to be alone.
    """

    def __init__(self, folder: str, mode: int, owner: int | None = None) -> None:
        self._folder = folder
        self._mode = mode
        # whose word counts; None: anybody's
        self._owner = owner

    def of(self, name: Name) -> Plain | None:
        """Return what is kept for an object, None if nothing is."""
        first, _, rest = name.cached.partition("/")
        data = self._read(first)
        # the last line counts; a line that was not written to its end does not
        at = data.rfind(b"\n%b " % rest.encode())
        found = _LINE.match(data, at + 1) if at >= 0 else None
        return None if found is None else Plain(bytes.fromhex(found[2].decode()), int(found[3]))

    def add(self, name: Name, plain: Plain) -> None:
        """Keep what is known of an object."""
        first, _, rest = name.cached.partition("/")
        # begins with a line's end, should the last writer not have come that far
        line = f"\n{rest} {plain.digest.hex()} {plain.size}\n".encode()
        self._append(first, line)

    def compact(self, first: str, left: Collection[str]) -> None:
        """Forget what is not in `left`, of the objects whose names begin with `first`."""
        lines = {found[1]: found[0] for found in _LINE.finditer(self._read(first))}
        kept = [line for rest, line in lines.items() if rest.decode() in left]
        new = f"{first}.new"
        with open(os.path.join(self._folder, new), "wb"):
            pass
        self._append(new, b"".join(b"\n%b\n" % line for line in kept))
        os.rename(os.path.join(self._folder, new), os.path.join(self._folder, first))

    def _read(self, first: str) -> bytes:
        try:
            with open(os.path.join(self._folder, first), "rb") as stream:
                if self._owner not in (None, os.fstat(stream.fileno()).st_uid):
                    return b""
                return stream.read()
        except FileNotFoundError:
            return b""

    def _append(self, first: str, data: bytes) -> None:
        path = os.path.join(self._folder, first)
        descriptor = os.open(
            path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, self._mode
        )
        try:
            if os.fstat(descriptor).st_size == 0:
                # another member of a group may have made it, and will do this
                with contextlib.suppress(PermissionError):
                    os.fchmod(descriptor, self._mode)
            written = os.write(descriptor, data)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        finally:
            os.close(descriptor)
