"""The bytes of files: chunks that are open, the most recently used ones."""

from __future__ import annotations

import bisect
import contextlib
import os
import threading

from . import ObjectError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .catalog import Chunk
    from .names import Name
    from .nodes import Node

__all__ = ["Content"]

_MOST_OPEN = 256
# verifying and opening this much is faster than handing it to another thread
_SMALL = 1 << 18


class _Open:
    """A descriptor that is closed when the last of those who read from it lets go."""

    __slots__ = ("descriptor",)

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class Content:
    """Reads files.

    Parameters
    ----------
    is_cached
        Whether an object can be opened without the network.
    later
        Has a job done by another thread.
    """

    def __init__(
        self, is_cached: Callable[[Name], bool], later: Callable[[Callable[[], None]], None]
    ) -> None:
        self._is_cached, self._later = is_cached, later
        self._lock = threading.Lock()
        self._open: dict[tuple[int, int], _Open] = {}

    def is_near(self, node: Node, offset: int, size: int) -> bool:
        """Say whether reading takes no longer than answering otherwise would."""
        if node.chunks is None:
            if node.entry.object is None or node.entry.external:
                # in chunks, which a catalog knows; or it cannot be read, and that is told elsewhere
                return False
            node.chunks = node.revision.chunks(node.entry)
        return all(
            (node.number, chunk.offset) in self._open
            or (chunk.size <= _SMALL and self._is_cached(chunk.object))
            for chunk in _touched(node.chunks, offset, size)
        )

    def approach(self, node: Node, offset: int, size: int) -> None:
        """Open what will be read; this may have to fetch it."""
        if node.chunks is None:
            node.chunks = node.revision.chunks(node.entry)
        self._read_ahead(node, node.chunks, offset)
        for chunk in _touched(node.chunks, offset, size):
            self._opened(node, chunk)

    def _read_ahead(self, node: Node, chunks: Sequence[Chunk], offset: int) -> None:
        """Fetch the next chunk as well for who has read the one before."""
        at = _index(chunks, offset)
        if not 0 < at < len(chunks) - 1 or (node.number, chunks[at - 1].offset) not in self._open:
            return

        def fetch() -> None:
            # whoever reads it is told what is wrong with it
            with contextlib.suppress(OSError):
                self._opened(node, chunks[at + 1])

        self._later(fetch)

    def read(self, node: Node, offset: int, size: int) -> bytes:
        """Return what a file holds there, less only at its end.

        Raises
        ------
        ObjectError
            An object cannot be had, or is not what it should be.
        """
        assert node.chunks is not None
        parts = []
        for chunk in _touched(node.chunks, offset, size):
            begin = max(offset, chunk.offset)
            length = min(offset + size, chunk.offset + chunk.size) - begin
            part = os.pread(self._opened(node, chunk).descriptor, length, begin - chunk.offset)
            if len(part) != length:
                raise ObjectError("shorter than its catalog says", chunk.object.path)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _opened(self, node: Node, chunk: Chunk) -> _Open:
        key = node.number, chunk.offset
        with self._lock:
            found = self._open.pop(key, None)
            if found is not None:
                # again the last one
                self._open[key] = found
                return found
        found = _Open(node.revision.open_chunk(node.entry, chunk))
        if os.fstat(found.descriptor).st_size != chunk.size:
            raise ObjectError("not as long as its catalog says", chunk.object.path)
        with self._lock:
            self._open[key] = found
            oldest = next(iter(self._open)) if len(self._open) > _MOST_OPEN else None
            # closed by whoever lets go last, which may be us: without the lock
            dropped = self._open.pop(oldest) if oldest else None
        del dropped
        return found


def _index(chunks: Sequence[Chunk], offset: int) -> int:
    return bisect.bisect_right(chunks, offset, key=lambda one: one.offset) - 1


def _touched(chunks: Sequence[Chunk], offset: int, size: int) -> Iterator[Chunk]:
    """Yield the chunks that hold some of these bytes."""
    at = _index(chunks, offset)
    while 0 <= at < len(chunks) and chunks[at].offset < offset + size:
        if chunks[at].offset + chunks[at].size > offset:
            yield chunks[at]
        at += 1
