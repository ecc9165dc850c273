"""Turn the blocks of a compressed file into pieces of bounded size.

Loaded by ``unpack.py`` from its file, so it has no siblings.
"""

from __future__ import annotations

import os
import sys
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["decoder"]

_PIECE_BYTES = 1 << 17
_GZIP_WINDOW = 31


class _Zstd:
    def __init__(self, prefix: str) -> None:
        sys.path.append(os.path.join(prefix, "hepscale"))
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        self.error: type[Exception] = zstd.ZstdError
        self._new = zstd.ZstdDecompressor
        self._frame = self._new()

    def pieces(self, block: bytes) -> Iterator[bytes]:
        while block or not (self._frame.eof or self._frame.needs_input):
            if self._frame.eof:
                self._frame = self._new()
            yield self._frame.decompress(block, _PIECE_BYTES)
            block = self._frame.unused_data if self._frame.eof else b""

    @property
    def is_whole(self) -> bool:
        return self._frame.eof


class _Gzip:
    error: type[Exception] = zlib.error

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP_WINDOW)

    def pieces(self, block: bytes) -> Iterator[bytes]:
        while block:
            if self._member.eof:
                self._member = zlib.decompressobj(_GZIP_WINDOW)
            yield self._member.decompress(block, _PIECE_BYTES)
            block = self._member.unused_data or self._member.unconsumed_tail

    @property
    def is_whole(self) -> bool:
        return self._member.eof


def decoder(path: str, prefix: str) -> _Zstd | _Gzip:
    """Return what decodes a file, by the end of its name.

    Parameters
    ----------
    path
        The file: ``.zst``, or else gzip.
    prefix
        Of the interpreter that runs this, which has brought the package that reads zstd.

    Returns
    -------
    object
        ``pieces(block)`` yields what the next block of the file adds, or raises ``error``;
        ``is_whole`` says whether the file could end here.

    Raises
    ------
    ImportError
        This interpreter cannot read it.
    """
    return _Zstd(prefix) if path.endswith(".zst") else _Gzip()
