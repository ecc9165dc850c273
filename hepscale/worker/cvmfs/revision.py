"""One revision of a repository: its tree by path, and the bytes of its files."""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

from . import ObjectError
from .catalog import Catalog, Chunk, Entry, Mount

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .cache import Cache
    from .fetch import Fetcher
    from .names import Name

__all__ = ["Revision"]

# about 1 KB each
_MOST_ENTRIES = 50_000
_MOST_CATALOGS = 32
_MOST_CHUNKS = 50_000
_TTL_S = 240

_Value = TypeVar("_Value")


class _Recent(Generic[_Value]):
    """What was used last, up to a weight in all; for several threads."""

    def __init__(self, most: int) -> None:
        self._most, self._weight = most, 0
        self._kept: OrderedDict[str, tuple[_Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> _Value | None:
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: str, value: _Value, weight: int) -> None:
        with self._lock:
            if key in self._kept:
                self._weight -= self._kept.pop(key)[1]
            self._kept[key] = value, weight
            self._weight += weight
            # the newest stays, however heavy it is
            while self._weight > self._most and len(self._kept) > 1:
                self._weight -= self._kept.popitem(last=False)[1][1]


class Revision:
    """One revision, which never changes; for several threads.

    Parameters
    ----------
    root
        The root catalog.
    cache, fetcher
        Where objects are, and come from.
    variables
        What the variants of symbolic links are made of.
    time
        When it was published, in seconds since 1970; None to take it from the catalog.
    max_ttl_s
        The longest time to go on without asking for a newer revision.
    offline
        Whether no server has answered, so that all is from the cache.
    notice
        Why this is not simply what the server offers now; empty if it is.

    Attributes
    ----------
    number : int
        Of the revision.
    ttl_s : float
        After this time a newer one is asked for.
    counters : Mapping
        Of the whole repository by CVMFS's names: "self_regular", "subtree_file_size" and so on.

    Raises
    ------
    ObjectError
        If the root catalog cannot be had.
    """

    def __init__(
        self,
        root: Name,
        cache: Cache,
        fetcher: Fetcher | None,
        variables: Mapping[str, str],
        *,
        time: int | None = None,
        max_ttl_s: float | None = None,
        offline: bool = False,
        notice: str = "",
    ) -> None:
        self.root, self.offline, self.notice = root, offline, notice
        self._cache, self._fetcher, self._variables = cache, fetcher, variables
        self._directories: _Recent[Mapping[str, Entry]] = _Recent(_MOST_ENTRIES)
        self._catalogs: _Recent[Catalog] = _Recent(_MOST_CATALOGS)
        self._chunks: _Recent[Sequence[Chunk]] = _Recent(_MOST_CHUNKS)
        self._top_catalog = self._loaded("", Mount(root))
        top = self._top_catalog.top()
        if top is None:
            raise ObjectError("a root catalog without a top", root.text)
        self._top = top
        told = self._top_catalog.properties
        self.number = _number(told.get("revision"))
        self.time = _number(told.get("last_modified")) if time is None else time
        self.ttl_s = float(_number(told.get("TTL"), _TTL_S))
        if max_ttl_s is not None:
            self.ttl_s = min(self.ttl_s, max_ttl_s)
        self.counters: Mapping[str, int] = self._top_catalog.counters

    def entry(self, path: str) -> Entry | None:
        """Return what `path` is, also if it is hidden; "" is the top, "/a/b" something below.

        Raises
        ------
        ObjectError
            If a catalog on the way cannot be had.
        """
        if not path:
            return self._top
        parent, _, name = path.rpartition("/")
        return self.children(parent).get(name)

    def children(self, path: str) -> Mapping[str, Entry]:
        """Return all entries of a directory by name, sorted, hidden ones too.

        Raises
        ------
        ObjectError
            If a catalog on the way cannot be had.
        """
        found = self._directories.get(path)
        if found is None:
            found = self._catalog(path).children(path)
            self._directories.put(path, found, len(found) + 1)
        return found

    def chunks(self, entry: Entry) -> Sequence[Chunk]:
        """Return the parts of a file in their order: the whole for one that is not chunked.

        Raises
        ------
        ObjectError
            If its parts are unknown, do not make up the file, or are on other servers.
        """
        if not stat.S_ISREG(entry.mode) or not entry.size:
            return ()
        if entry.external:
            raise ObjectError("a file on servers outside the repository", entry.path)
        if not entry.chunked:
            if entry.object is None:
                raise ObjectError("a file without an object", entry.path)
            return (Chunk(0, entry.size, entry.object),)
        found = self._chunks.get(entry.path)
        if found is None:
            found = self._catalog(entry.path.rpartition("/")[0]).chunks(entry)
            ends = [0, *(chunk.offset + chunk.size for chunk in found)]
            if [chunk.offset for chunk in found] != ends[:-1] or ends[-1] != entry.size:
                raise ObjectError("chunks that do not make up the file", entry.path)
            self._chunks.put(entry.path, found, len(found))
        return found

    def open_chunk(self, entry: Entry, chunk: Chunk) -> int:
        """Return a descriptor of the plain bytes of a part of a file.

        Raises
        ------
        ObjectError
            If they cannot be had.
        """
        return self._cache.open(
            chunk.object, self._fetcher, compressed=entry.compressed, most=chunk.size
        )

    def read(self, entry: Entry, offset: int, size: int) -> bytes:
        """Return `size` bytes of a file from `offset` on, less where it ends.

        Raises
        ------
        ObjectError
            If they cannot be had.
        """
        end = min(offset + size, entry.size)
        parts = []
        for chunk in self.chunks(entry):
            first, last = max(offset, chunk.offset), min(end, chunk.offset + chunk.size)
            if first < last:
                parts.append(self._part(entry, chunk, first - chunk.offset, last - first))
        return b"".join(parts)

    # -- inside ------------------------------------------------------------------------------------

    def _part(self, entry: Entry, chunk: Chunk, offset: int, size: int) -> bytes:
        opened = self.open_chunk(entry, chunk)
        try:
            content = os.pread(opened, size, offset)
        finally:
            os.close(opened)
        if len(content) != size:
            raise ObjectError("an object that is too short", chunk.object.text)
        return content

    def _catalog(self, path: str) -> Catalog:
        """Return the catalog that lists the directory `path`."""
        catalog, at = self._top_catalog, ""
        for name in path.split("/")[1:]:
            at = f"{at}/{name}"
            if (mount := catalog.mounts.get(at)) is not None:
                catalog = self._opened(at, mount)
        return catalog

    def _opened(self, path: str, mount: Mount) -> Catalog:
        found = self._catalogs.get(path)
        if found is None:
            found = self._loaded(path, mount)
            self._catalogs.put(path, found, 1)
        return found

    def _loaded(self, path: str, mount: Mount) -> Catalog:
        opened = self._cache.open(mount.root, self._fetcher)
        return Catalog(opened, mount.root, path, mount.inside, self._variables)


def _number(text: str | None, default: int = 0) -> int:
    return int(text) if text and text.isdecimal() else default
