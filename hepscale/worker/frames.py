"""The frame format: how a running task tells what it has done, and how a journal stores it.

A frame is a header, a JSON object and a payload::

    magic    4 bytes   b"HSF1", the last digit is the format's version
    kind     u8        see `Kind`
    flags    u8        1: the payload is compressed (zlib)
    sequence u32       number of the frame within its task, from 0
    meta     u32       length of the JSON object
    payload  u64       length of the payload as stored
    body     u32       CRC-32 of JSON object and payload
    header   u32       CRC-32 of all of the above

All integers are little-endian. A reader drops a frame whose body does not verify and goes on with
the next; after a header that does not verify nothing can be trusted, so the rest is dropped. A
truncated tail is simply not a frame yet.
"""

from __future__ import annotations

import json
import struct
import zlib
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Frame", "FrameReader", "Kind", "encode", "first_size"]

MAGIC = b"HSF1"
_HEAD = struct.Struct("<4sBBIIQI")
_CRC = struct.Struct("<I")
HEADER_SIZE = _HEAD.size + _CRC.size
_COMPRESSED = 1
_WORTH_COMPRESSING = 512
# sums of weights hardly shrink, and trying takes a hundred times as long as trying a part of them
_SAMPLE_BYTES, _SAMPLES, _WORTH_SHARE = 1 << 14, 4, 0.8


class Kind(IntEnum):
    """What a frame says.

    ``HELLO``: the task's process has started. ``BEGIN``: it works on this chunk now. ``OUTPUT``:
    these chunks are done, the payload is their merged output (empty: they had none). ``FAILED``:
    this chunk has failed. ``DONE``: the task has ended by itself. ``RUN`` and ``SPLIT`` occur in
    journals only: whose journal it is, and which chunk was replaced by which two.
    """

    HELLO = 1
    BEGIN = 2
    OUTPUT = 3
    FAILED = 4
    DONE = 5
    RUN = 16
    SPLIT = 17


class Frame(NamedTuple):
    """One verified frame; `raw` is the whole of it as it was read."""

    kind: Kind
    sequence: int
    meta: dict[str, Any]
    raw: bytes

    @property
    def payload(self) -> bytes:
        """The payload, decompressed."""
        head = _HEAD.unpack_from(self.raw)
        stored = memoryview(self.raw)[HEADER_SIZE + head[4] :]
        return zlib.decompress(stored) if head[2] & _COMPRESSED else bytes(stored)


def encode(
    kind: Kind, sequence: int, meta: dict[str, Any], payload: bytes = b"", level: int = 0
) -> bytes:
    """Return the bytes of one frame; `level` is zlib's, 0 stores the payload as it is.

    A payload that would hardly get smaller is stored as it is.
    """
    flags = 0
    if level and _shrinks(payload, level):
        payload, flags = zlib.compress(payload, level), _COMPRESSED
    text = json.dumps(meta, separators=(",", ":")).encode()
    crc = zlib.crc32(payload, zlib.crc32(text))
    head = _HEAD.pack(MAGIC, kind, flags, sequence, len(text), len(payload), crc)
    return b"".join((head, _CRC.pack(zlib.crc32(head)), text, payload))


def first_size(data: bytes) -> int:
    """Return how long the frame is that `data` begins with; 0 if that cannot be known yet."""
    if len(data) < HEADER_SIZE:
        return 0
    head = _HEAD.unpack_from(data)
    return int(HEADER_SIZE + head[4] + head[5])


def _shrinks(payload: bytes, level: int) -> bool:
    if len(payload) < _WORTH_COMPRESSING:
        return False
    if len(payload) <= 2 * _SAMPLES * _SAMPLE_BYTES:
        return True
    step = len(payload) // _SAMPLES
    sample = b"".join(payload[at * step : at * step + _SAMPLE_BYTES] for at in range(_SAMPLES))
    return len(zlib.compress(sample, level)) < _WORTH_SHARE * len(sample)


class FrameReader:
    """Turns bytes, in pieces of any size, into frames.

    Attributes
    ----------
    dropped
        Number of frames whose body did not verify.
    broken
        Why the rest of the stream is not read any more, or an empty string.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.dropped = 0
        self.broken = ""

    @property
    def pending(self) -> int:
        """Number of bytes that are not a whole frame yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Add `data` and yield each frame that is complete now."""
        if self.broken:
            return
        self._buffer += data
        while len(self._buffer) >= HEADER_SIZE:
            head = bytes(self._buffer[: _HEAD.size])
            magic, kind, _, sequence, n_meta, n_payload, crc = _HEAD.unpack(head)
            (head_crc,) = _CRC.unpack_from(self._buffer, _HEAD.size)
            if magic != MAGIC or head_crc != zlib.crc32(head):
                self.broken = f"header of frame number {sequence} does not verify"
                if magic != MAGIC:
                    self.broken = f"not a frame: starts with {magic!r} instead of {MAGIC!r}"
                self._buffer.clear()
                return
            size = HEADER_SIZE + n_meta + n_payload
            if len(self._buffer) < size:
                return
            raw = bytes(memoryview(self._buffer)[:size])
            del self._buffer[:size]
            if zlib.crc32(memoryview(raw)[HEADER_SIZE:]) != crc:
                self.dropped += 1
                continue
            meta = json.loads(raw[HEADER_SIZE : HEADER_SIZE + n_meta])
            yield Frame(Kind(kind), sequence, meta, raw)
