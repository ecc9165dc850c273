"""A frame file that grows, as an engine reads it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from hepscale.worker.layout import opened

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["MOST_BYTES", "Tail"]

# one read hands over at most this much, so that memory stays bounded
MOST_BYTES = 8 << 20

# none yet, a link, a socket, or what is no file otherwise
_NO_FRAMES = (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EINVAL)


class Tail:
    """Reads a file from its beginning, again and again; it need not be there yet.

    Attributes
    ----------
    offset
        Number of bytes that were read.
    """

    def __init__(self, path: Path) -> None:
        self.offset = 0
        self._path = path
        self._stream = -1

    def read(self) -> bytes:
        """Return what was added since the last call, at most `MOST_BYTES` of it."""
        if self._stream < 0:
            try:
                self._stream = opened(str(self._path.parent), self._path.name, os.O_RDONLY)
            except OSError as error:
                # what a task put there in its place is no frames
                if error.errno not in _NO_FRAMES:
                    raise
        if self._stream < 0:
            return b""
        data = os.pread(self._stream, MOST_BYTES, self.offset)
        self.offset += len(data)
        return data

    def close(self) -> None:
        """Close the file."""
        if self._stream >= 0:
            os.close(self._stream)
            self._stream = -1
