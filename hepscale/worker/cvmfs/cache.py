"""The cache of a node: a folder of this user's and perhaps a site's, filled from servers."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import zlib
from typing import TYPE_CHECKING

from . import ObjectError, RepositoryError
from .digests import Plain, plain_hasher
from .fetch import Damaged
from .names import hasher
from .store import DamagedObject, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .fetch import Fetcher
    from .names import Hasher, Name

__all__ = ["Cache"]

_BLOCK_BYTES = 1 << 18
_REMEMBERED = re.compile(r"([0-9a-f]{40}(?:-[a-z0-9]+)?)T([0-9]{1,18})R([0-9]{1,18})\s*")


class Cache:
    """Objects by name, verified; shared by all processes and threads of this user on a node.

    Parameters
    ----------
    folder
        Of this user, made if need be, cleaned of what was not used for longest.
    alien
        A site's cache. It is looked at first and never cleaned. If it can be written, it is what
        is filled, and `folder` is not used; else what it lacks goes to `folder`.
    quota_bytes
        How much `folder` may hold.

    Raises
    ------
    RepositoryError
        If a folder cannot be made, or `folder` is not private.
    """

    def __init__(
        self, folder: str, *, alien: str | None = None, quota_bytes: int | None = None
    ) -> None:
        self._stores = [] if alien is None else [Store(os.path.abspath(alien), is_alien=True)]
        if not self._stores or not self._stores[0].is_writable:
            own = os.path.abspath(folder)
            self._stores.append(Store(own, is_alien=False, quota_bytes=quota_bytes))

    # -- objects -----------------------------------------------------------------------------------

    def has(self, name: Name) -> bool:
        """Return whether an object is here, be it damaged or not."""
        return any(store.has(name) for store in self._stores)

    def open(
        self,
        name: Name,
        fetcher: Fetcher | None,
        *,
        compressed: bool = True,
        most: int | None = None,
    ) -> int:
        """Return a descriptor of an object's plain bytes, which are verified.

        Parameters
        ----------
        name
            Of the object.
        fetcher
            For what is not here; None if there is no network.
        compressed
            Whether servers keep it compressed.
        most
            Plain bytes that are taken from a server at most, who may send any number; None: as many
            as the cache may hold.

        Raises
        ------
        ObjectError
            If it cannot be had, or cannot be stored.
        """
        try:
            descriptor, lack = self._find(name)
            if descriptor is not None:
                return descriptor
            if fetcher is None:
                raise ObjectError(f"it {lack}, and no server is asked", name.text)
            with self._stores[-1].alone(name) as waited:
                descriptor, _ = self._find(name)
                if descriptor is not None:
                    return descriptor
                if not waited:
                    return self._fetch(name, fetcher, compressed, most)
            # the one who was waited for had no success: not one after the other then, each of
            # whom would wait until all servers have failed
            return self._fetch(name, fetcher, compressed, most)
        except ObjectError:
            raise
        except OSError as error:
            raise ObjectError(self._refusal(error), name.text) from None
        except RepositoryError as error:
            # the folder has been taken away and made by somebody else
            raise ObjectError(f"{error}: {error.cause}", name.text) from None

    def _find(self, name: Name) -> tuple[int | None, str]:
        """Return a descriptor, or None and what is wrong."""
        lack = "is not in the cache"
        for store in self._stores:
            try:
                descriptor = store.find(name)
            except DamagedObject as damaged:
                lack = f"is damaged in the cache ({damaged})"
            else:
                if descriptor is not None:
                    return descriptor, ""
        return None, lack

    def _fetch(self, name: Name, fetcher: Fetcher, compressed: bool, most: int | None) -> int:
        store = self._stores[-1]

        def take(blocks: Iterator[bytes]) -> int:
            descriptor, path = store.temporary()
            try:
                pieces = _limited(_unpacked(blocks, name, compressed), most)
                plain = _written(descriptor, pieces, store, name)
                return store.publish(name, path, plain)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                raise
            finally:
                os.close(descriptor)

        return fetcher.stream(name.path, take)

    def _refusal(self, error: OSError) -> str:
        folder = self._stores[-1].folder
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"there is no room in the cache {folder}: {error.strerror}"
        return f"the cache {folder} cannot be used: {error}"

    # -- what is needed offline --------------------------------------------------------------------

    def remembered(self, fqrn: str) -> tuple[str, int, int] | None:
        """Return root hash, time of publication and revision of the newest revision seen."""
        known = [self._remembered(store, fqrn) for store in self._stores]
        return max((one for one in known if one), key=_age, default=None)

    def remember(self, fqrn: str, root: str, time: int, revision: int) -> None:
        """Remember a revision: none older is to be accepted again.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        self._stores[-1].write(_checksum(fqrn), f"{root}T{time}R{revision}".encode())

    def kept(self, fqrn: str, kind: str) -> bytes | None:
        """Return what was kept of a repository: of the newest revision first."""
        newest = self.remembered(fqrn)
        # the last folder is this user's own, if there are two
        stores = self._stores[::-1]
        stores.sort(key=lambda store: self._remembered(store, fqrn) != newest)
        found = (store.read(_kept(fqrn, kind)) for store in stores)
        return next((one for one in found if one is not None), None)

    def keep(self, fqrn: str, kind: str, data: bytes) -> None:
        """Keep a manifest or a whitelist, so that a warm cache is enough.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        self._stores[-1].write(_kept(fqrn, kind), data)

    def _remembered(self, store: Store, fqrn: str) -> tuple[str, int, int] | None:
        text = (store.read(_checksum(fqrn)) or b"").decode("ascii", "replace")
        found = _REMEMBERED.fullmatch(text)
        return None if found is None else (found[1], int(found[2]), int(found[3]))


def _age(known: tuple[str, int, int]) -> tuple[int, int]:
    return known[1], known[2]


def _checksum(fqrn: str) -> str:
    return f"cvmfschecksum.{_plain_name(fqrn)}"


def _kept(fqrn: str, kind: str) -> str:
    return f".hepscale/kept/{_plain_name(f'{fqrn}.{kind}')}"


def _plain_name(text: str) -> str:
    if "/" in text or "\0" in text:
        raise ValueError(f"not the name of a repository: {text!r}")
    return text


def _written(descriptor: int, pieces: Iterator[bytes], store: Store, name: Name) -> Plain:
    digest, size = plain_hasher(), 0
    with open(descriptor, "wb", buffering=_BLOCK_BYTES, closefd=False) as stream:
        for piece in pieces:
            size += len(piece)
            if not store.fits(size):
                raise ObjectError("it is larger than the quota of the cache", name.text)
            digest.update(piece)
            stream.write(piece)
    return Plain(digest.digest(), size)


def _limited(pieces: Iterator[bytes], most: int | None) -> Iterator[bytes]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if most is not None and size > most:
            raise Damaged(f"it has more than {most} bytes")
        yield piece


def _unpacked(blocks: Iterator[bytes], name: Name, compressed: bool) -> Iterator[bytes]:
    """Yield the plain bytes of an object, in small pieces; raise at the end if it is another."""
    stored = hasher(name.algorithm)
    hashed = _hashed(blocks, stored)
    yield from _inflated(hashed) if compressed else hashed
    if stored.digest() != name.digest:
        raise Damaged("it is not the object that it should be")


def _hashed(blocks: Iterator[bytes], stored: Hasher) -> Iterator[bytes]:
    for block in blocks:
        stored.update(block)
        yield block


def _inflated(blocks: Iterator[bytes]) -> Iterator[bytes]:
    inflater = zlib.decompressobj()
    for block in blocks:
        while block:
            yield _piece(inflater, block)
            block = inflater.unconsumed_tail
            if inflater.unused_data:
                raise Damaged("something follows the end of the compressed object")
    # a piece may have been full when all had been taken in
    while not inflater.eof:
        piece = _piece(inflater, b"")
        if not piece:
            raise Damaged("the compressed object is cut short")
        yield piece


def _piece(inflater: zlib._Decompress, block: bytes) -> bytes:
    try:
        return inflater.decompress(block, _BLOCK_BYTES)
    except zlib.error as error:
        raise Damaged(f"it cannot be decompressed: {error}") from None
