"""One catalog: an SQLite file that lists directories, and where catalogs below it begin."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sqlite3
import struct
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from . import ObjectError
from .names import Algorithm, Name

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Catalog", "Chunk", "Entry", "Mount", "expanded", "tagged"]

_MOUNT, _ROOT, _CHUNKED, _EXTERNAL, _BOUND, _HIDDEN = 2, 32, 64, 128, 0x4000, 0x8000
_INODES = (1 << 63) - 1
_VARIANT = re.compile(r"\$\(([^)]*)\)")
_ALGORITHMS: dict[int, Algorithm] = {int(one): one for one in Algorithm}
_NO_XATTRS: Mapping[str, bytes] = {}
# those that catalogs of old have not, and what stands for them there
_COLUMNS = {
    "hardlinks": "1", "hash": "NULL", "size": "0", "mode": "0", "mtime": "0", "mtimens": "0",
    "flags": "0", "name": "''", "symlink": "''", "uid": "0", "gid": "0", "xattr": "NULL",
    "md5path_1": "0",
}  # fmt: skip


class Entry(NamedTuple):
    """What a catalog says of one name.

    Parameters
    ----------
    name
        The last part of `path`.
    path
        In the repository: "" is the top, then "/a", "/a/b"; decoded as `os.fsdecode` does.
    mode
        Kind and permissions.
    size
        Bytes; of a symbolic link those of `link`.
    inode
        From the path, or from the group of a hard link: the same in every mount, more than 1.
    link, rawlink
        Target of a symbolic link, with and without its variants expanded.
    object
        What the content is stored as, or None if it is not one object.
    compressed
        Whether that is (or its chunks are) stored compressed.
    nested
        Whether another catalog is in charge from here on.
    hidden
        Whether a listing leaves it out.
    external
        Whether the content is on other servers than the repository.
    algorithm
        Of its object or chunks; None if it is one that is not known here.
    """

    name: str
    path: str
    mode: int
    size: int
    mtime_ns: int
    uid: int
    gid: int
    nlink: int
    inode: int
    link: str
    rawlink: str
    object: Name | None
    compressed: bool
    chunked: bool
    nested: bool
    hidden: bool
    external: bool
    algorithm: Algorithm | None
    xattrs: Mapping[str, bytes]


class Chunk(NamedTuple):
    """A part of a file: plain bytes from `offset` on, and the object that they are stored as."""

    offset: int
    size: int
    object: Name


class Mount(NamedTuple):
    """Where another catalog begins: its name, and the path that its own paths leave out.

    They leave out something below a bind mount point only, where the root catalog of another
    revision begins.
    """

    root: Name
    inside: str = ""


class Catalog:
    """An open catalog, for several threads; it is closed when nobody has it any more.

    Parameters
    ----------
    opened
        Descriptor of the SQLite file, which is closed here.
    name
        Of the object, for messages.
    mounted, inside
        Path at which the catalog is in charge, and the `Mount.inside` that led here.
    variables
        What the variants of symbolic links are made of.
    """

    def __init__(
        self,
        opened: int,
        name: Name,
        mounted: str,
        inside: str,
        variables: Mapping[str, str],
    ) -> None:
        self._lock = threading.Lock()
        self._variables = variables
        self.name = name
        self._mounted, self._inside = mounted, inside
        try:
            self._db = _connected(opened)
            self._db.text_factory = os.fsdecode
            self.properties = dict(self._all("properties", "key, value"))
            counters = self._all("statistics", "counter, value")
            self.counters = {str(key): int(value) for key, value in counters}
            self.mounts = self._mounts()
            there = {row[1] for row in self._db.execute("PRAGMA table_info(catalog)")}
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise ObjectError(f"a catalog cannot be read: {error}", name.text) from error
        finally:
            os.close(opened)
        self._columns = ", ".join(
            column if column in there else default for column, default in _COLUMNS.items()
        )

    def __del__(self) -> None:
        if hasattr(self, "_db"):
            self._db.close()

    def top(self) -> Entry | None:
        """Return the entry of the directory that the catalog begins with."""
        found = self._entries("md5path_1 = ? AND md5path_2 = ?", self._mounted, None)
        return next(iter(found.values()), None)

    def children(self, path: str) -> dict[str, Entry]:
        """Return the entries of the directory `path` by name, sorted; empty where there is none."""
        return self._entries("parent_1 = ? AND parent_2 = ?", path, path)

    def chunks(self, entry: Entry) -> list[Chunk]:
        """Return the chunks of a chunked file in their order."""
        if entry.algorithm is None:
            raise ObjectError("an algorithm that is not known here", entry.path)
        rows = self._asked(
            "SELECT offset, size, hash FROM chunks WHERE md5path_1 = ? AND md5path_2 = ?"
            " ORDER BY offset",
            self._key(entry.path),
        )
        return [
            Chunk(offset, size, Name(bytes(digest), entry.algorithm, "P"))
            for offset, size, digest in rows
        ]

    # -- inside ------------------------------------------------------------------------------------

    def _all(self, table: str, columns: str) -> list[tuple[Any, ...]]:
        """Return the rows of a small table, none where a schema of old has not got it."""
        try:
            return self._db.execute(f"SELECT {columns} FROM {table}").fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            return []

    def _mounts(self) -> dict[str, Mount]:
        """Return where other catalogs begin, by their path in the repository."""
        inside = self._inside
        nested = {
            inside + path: Mount(Name.parse(root, "C"), inside)
            for path, root in self._all("nested_catalogs", "path, sha1")
        }
        bound = {
            inside + path: Mount(Name.parse(root, "C"), inside + path)
            for path, root in self._all("bind_mountpoints", "path, sha1")
        }
        return nested | bound

    def _key(self, path: str) -> tuple[int, int]:
        inside = os.fsencode(path[len(self._inside) :])
        first, second = struct.unpack("<qq", hashlib.md5(inside, usedforsecurity=False).digest())
        return first, second

    def _asked(self, statement: str, values: tuple[int, int]) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise ObjectError(f"a catalog cannot be read: {error}", self.name.text) from error

    def _entries(self, where: str, path: str, parent: str | None) -> dict[str, Entry]:
        rows = self._asked(
            f"SELECT {self._columns} FROM catalog WHERE {where} ORDER BY name", self._key(path)
        )
        entries = {}
        for row in rows:
            # the top is in no directory
            at = path if parent is None else f"{parent}/{row[7]}"
            entries[row[7]] = self._entry(row, at)
        return entries

    def _entry(self, row: tuple[Any, ...], path: str) -> Entry:
        links, digest, size, mode, mtime, mtimens, flags, name, raw, uid, gid, xattrs, key = row
        raw = raw or ""
        link = expanded(raw, self._variables) if "$(" in raw else raw
        group = links >> 32
        if group:
            inode = _hashed(f"{path.rpartition('/')[0]}\0{group}")
        else:
            inode = _hashed(path) if self._inside else key & _INODES
        chunked = bool(flags & _CHUNKED)
        algorithm = _ALGORITHMS.get(flags >> 8 & 7)
        return Entry(
            name,
            path,
            mode,
            len(os.fsencode(link)) if raw else size,
            (mtime or 0) * 10**9 + (mtimens or 0),
            uid & 0xFFFFFFFF,
            gid & 0xFFFFFFFF,
            links & 0xFFFFFFFF or 1,
            max(inode, 2),
            link,
            raw,
            None if chunked or not digest or algorithm is None else Name(digest, algorithm),
            flags >> 11 & 7 != 1,
            chunked,
            bool(flags & (_MOUNT | _ROOT | _BOUND)),
            bool(flags & _HIDDEN),
            bool(flags & _EXTERNAL),
            algorithm,
            _xattrs(xattrs) if xattrs else _NO_XATTRS,
        )


def expanded(raw: str, variables: Mapping[str, str]) -> str:
    """Return the target of a symbolic link with ``$(NAME)`` and ``$(NAME:-default)`` replaced."""

    def value(found: re.Match[str]) -> str:
        name, _, default = found[1].partition(":-")
        return variables.get(name, default)

    return _VARIANT.sub(value, raw)


def _connected(opened: int) -> sqlite3.Connection:
    """Open what `opened` is: in place, or from memory where a removed file has no path any more."""
    try:
        made = sqlite3.connect(
            f"file:/proc/self/fd/{opened}?mode=ro&immutable=1", uri=True, check_same_thread=False
        )
        made.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        made = sqlite3.connect(":memory:", check_same_thread=False)
        made.deserialize(os.pread(opened, os.fstat(opened).st_size, 0))
    # to sort a large directory there may be no folder for a temporary file
    made.execute("PRAGMA temp_store = MEMORY")
    return made


def _hashed(text: str) -> int:
    digest = hashlib.md5(os.fsencode(text), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "little") & _INODES


def _xattrs(blob: bytes) -> dict[str, bytes]:
    """Return the attributes in a blob: version 1, count, then lengths, key and value of each."""
    found: dict[str, bytes] = {}
    at = 2
    try:
        for _ in range(blob[1] if blob[0] == 1 else 0):
            key, value = at + 2, at + 2 + blob[at]
            at = value + blob[at + 1]
            found[os.fsdecode(blob[key:value])] = blob[value:at]
    except IndexError:
        return found
    return found


def tagged(opened: int, name: Name, tag: str) -> tuple[Name | None, list[str]]:
    """Return the root catalog that a history calls `tag`, if any, and its tags, the newest first.

    Parameters
    ----------
    opened
        Descriptor of the history, which is closed here.
    name
        Of the history, for messages.
    tag
        What to look for.
    """
    try:
        with contextlib.closing(_connected(opened)) as db:
            rows = db.execute("SELECT name, hash FROM tags ORDER BY revision DESC").fetchall()
        roots = {found: Name.parse(root, "C") for found, root in rows}
    except (sqlite3.Error, ValueError) as error:
        raise ObjectError(f"the history cannot be read: {error}", name.text) from error
    finally:
        os.close(opened)
    return roots.get(tag), list(roots)
