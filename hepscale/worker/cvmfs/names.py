"""Names of stored objects: a digest of 20 bytes by one of three algorithms, and what it is of."""

from __future__ import annotations

import enum
import hashlib
import struct
from typing import NamedTuple, Protocol

__all__ = ["Algorithm", "Hasher", "Name", "hasher"]

DIGEST_BYTES = 20


class Algorithm(enum.IntEnum):
    """How an object is hashed; the numbers are those in a catalog's flags."""

    SHA1 = 0
    RMD160 = 1
    SHAKE128 = 2


_ENDINGS = {Algorithm.SHA1: "", Algorithm.RMD160: "-rmd160", Algorithm.SHAKE128: "-shake128"}
_ALGORITHMS = {ending: algorithm for algorithm, ending in _ENDINGS.items()}


class Hasher(Protocol):
    """What `hasher` returns."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take more bytes in."""

    def digest(self) -> bytes:
        """Return the 20 bytes."""


class Name(NamedTuple):
    """Of a stored object; the digest is that of the bytes as they are stored on a server.

    Parameters
    ----------
    digest
        20 bytes.
    algorithm
        What made the digest.
    suffix
        "" of a file, "C" of a catalog, "P" of a part of a file, "X" of a certificate, "H" of a
        history, "M" of meta information: part of the address on a server only.
    """

    digest: bytes
    algorithm: Algorithm = Algorithm.SHA1
    suffix: str = ""

    @classmethod
    def parse(cls, text: str, suffix: str = "") -> Name:
        """Return the name that `text` is: "4b91...", "4b91...-shake128".

        Raises
        ------
        ValueError
            If it is none.
        """
        digits, dash, ending = text.partition("-")
        algorithm = _ALGORITHMS.get(dash + ending)
        # fromhex alone would skip white space
        if algorithm is None or len(digits) != 2 * DIGEST_BYTES or not digits.isalnum():
            raise ValueError(f"not the name of an object: {text!r}")
        return cls(bytes.fromhex(digits), algorithm, suffix)

    @property
    def text(self) -> str:
        """The digest in hexadecimal with its algorithm, without the suffix."""
        return self.digest.hex() + _ENDINGS[self.algorithm]

    @property
    def path(self) -> str:
        """Where it is below the URL of a server."""
        return f"data/{self.cached}{self.suffix}"

    @property
    def cached(self) -> str:
        """Where it is in the folder of a cache."""
        text = self.text
        return f"{text[:2]}/{text[2:]}"


def hasher(algorithm: Algorithm) -> Hasher:
    """Return what hashes as `algorithm` says."""
    if algorithm is Algorithm.SHA1:
        return hashlib.sha1(usedforsecurity=False)
    if algorithm is Algorithm.SHAKE128:
        return _Shake128()
    try:
        return hashlib.new("ripemd160", usedforsecurity=False)
    except ValueError:
        return Ripemd160()


class _Shake128:
    def __init__(self) -> None:
        self._shake = hashlib.shake_128(usedforsecurity=False)
        self.update = self._shake.update

    def digest(self) -> bytes:
        return self._shake.digest(DIGEST_BYTES)


# -- RIPEMD-160, which many builds of OpenSSL 3 lack -----------------------------------------------

_START = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0)
_ADDED = (
    (0, 0x5A827999, 0x6ED9EBA1, 0x8F1BBCDC, 0xA953FD4E),
    (0x50A28BE6, 0x5C4DD124, 0x6D703EF3, 0x7A6D76E9, 0),
)
_RHO = (7, 4, 13, 1, 10, 6, 15, 3, 12, 0, 9, 5, 2, 14, 11, 8)
_SHIFTS = (
    (11, 14, 15, 12, 5, 8, 7, 9, 11, 13, 14, 15, 6, 7, 9, 8),
    (12, 13, 11, 15, 6, 9, 9, 7, 12, 15, 11, 13, 7, 8, 7, 7),
    (13, 15, 14, 11, 7, 7, 6, 8, 13, 14, 13, 12, 5, 5, 6, 9),
    (14, 11, 12, 14, 8, 6, 5, 5, 15, 12, 15, 14, 9, 9, 8, 6),
    (15, 12, 13, 13, 9, 5, 8, 6, 14, 11, 12, 11, 8, 6, 5, 5),
)
_WORD = 0xFFFFFFFF


def _steps(line: int) -> list[tuple[int, int, int, int]]:
    """Return (function, word of the block, shift, number added) of the 80 steps of a line."""
    order = [(9 * i + 5) % 16 for i in range(16)] if line else list(range(16))
    steps = []
    for turn in range(5):
        function = 4 - turn if line else turn
        steps += [(function, word, _SHIFTS[turn][word], _ADDED[line][turn]) for word in order]
        order = [_RHO[word] for word in order]
    return steps


_LINES = tuple(_steps(line) for line in (0, 1))


def _mixed(function: int, x: int, y: int, z: int) -> int:
    if function == 0:
        return x ^ y ^ z
    if function == 1:
        return (x & y) | (~x & z)
    if function == 2:
        return (x | ~y) ^ z
    if function == 3:
        return (x & z) | (y & ~z)
    return x ^ (y | ~z)


class Ripemd160:
    """RIPEMD-160 in Python: less than 1 MB/s, for a Python whose OpenSSL has none."""

    def __init__(self) -> None:
        self._state = _START
        self._rest = b""
        self._length = 0

    def update(self, data: bytes | memoryview) -> None:
        """Take more bytes in."""
        self._length += len(data)
        data = self._rest + bytes(data)
        whole = len(data) - len(data) % 64
        for at in range(0, whole, 64):
            self._state = self._after(data[at : at + 64])
        self._rest = data[whole:]

    def digest(self) -> bytes:
        """Return the 20 bytes."""
        ending = self._rest + b"\x80" + bytes((55 - self._length) % 64)
        ending += struct.pack("<Q", 8 * self._length)
        kept = self._state
        for at in range(0, len(ending), 64):
            self._state = self._after(ending[at : at + 64])
        state, self._state = self._state, kept
        return struct.pack("<5I", *state)

    def _after(self, block: bytes) -> tuple[int, int, int, int, int]:
        words = struct.unpack("<16I", block)
        ends = []
        for line in _LINES:
            a, b, c, d, e = self._state
            for function, word, shift, added in line:
                total = (a + _mixed(function, b, c, d) + words[word] + added) & _WORD
                total = ((total << shift) | (total >> (32 - shift))) + e
                c = (c << 10 | c >> 22) & _WORD
                a, b, c, d, e = e, total & _WORD, b, c, d
            ends.append((a, b, c, d, e))
        h, (left, right) = self._state, ends
        return (
            (h[1] + left[2] + right[3]) & _WORD,
            (h[2] + left[3] + right[4]) & _WORD,
            (h[3] + left[4] + right[0]) & _WORD,
            (h[4] + left[0] + right[1]) & _WORD,
            (h[0] + left[1] + right[2]) & _WORD,
        )
