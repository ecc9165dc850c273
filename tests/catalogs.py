"""The catalogs of a published repository: SQLite files that `publisher` stores."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hepscale.worker.cvmfs.names import Algorithm, Name

TIME = 1_700_000_000
_COUNTERS = (
    "regular", "symlink", "dir", "nested", "chunked", "chunks", "file_size", "chunked_size",
    "xattr", "external", "external_file_size", "special",
)  # fmt: skip
_PARTS = ("self", "subtree")
_COLUMNS = (
    "md5path_1 INTEGER", "md5path_2 INTEGER", "parent_1 INTEGER", "parent_2 INTEGER",
    "hardlinks INTEGER", "hash BLOB", "size INTEGER", "mode INTEGER", "mtime INTEGER",
    "mtimens INTEGER", "flags INTEGER", "name TEXT", "symlink TEXT", "uid INTEGER", "gid INTEGER",
    "xattr BLOB",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What every kind of entry has."""

    mode: int = 0
    uid: int = 1500
    gid: int = 1500
    mtime_ns: int = TIME * 10**9
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    hidden: bool = False


@dataclass(frozen=True)
class File(Meta):
    """A file; of `chunk` bytes each if given. Those with the same `group` are one, hard linked."""

    content: bytes = b""
    compressed: bool = True
    chunk: int = 0
    group: int = 0
    external: bool = False


@dataclass(frozen=True)
class Link(Meta):
    """A symbolic link, as it is stored: variants are not expanded."""

    target: str = ""


@dataclass(frozen=True)
class Folder(Meta):
    """A directory; with a catalog of its own if `nested`, or another revision bound there."""

    entries: Mapping[str, Tree] = field(default_factory=dict)
    nested: bool = False
    bind: Revision | None = None


Tables = dict[str, tuple[Sequence[str], Sequence[Sequence[object]]]]
Tree = bytes | File | Link | Folder | Mapping[str, "Tree"]


@dataclass(frozen=True)
class Revision:
    """One revision that was published."""

    number: int
    root: Name
    size: int
    time: int
    tag: str


class Catalogs:
    """Writes the catalogs of one revision."""

    def __init__(
        self, store: Callable[..., Name], algorithm: Algorithm, schema: int, number: int,
        ttl_s: int | None,
    ) -> None:  # fmt: skip
        self.store, self.algorithm = store, algorithm
        self.schema, self.number, self.ttl_s = schema, number, ttl_s
        self.objects: dict[str, list[Name]] = {}  # of each file

    def write(self, path: str, top: Folder) -> tuple[Name, int, Counter[str]]:
        """Store the catalog of the directory `path`; return its name, its size, its counters."""
        catalog = _Catalog(self.schema)
        catalog.properties.update(schema="2.5", schema_revision=self.schema, revision=self.number)
        if path:
            catalog.properties["root_prefix"] = path
        elif self.ttl_s is not None:
            catalog.properties["TTL"] = self.ttl_s
        catalog.counters["self_dir"] = 1
        name = path.rpartition("/")[2]
        catalog.add(path, name, top, 33 if path else 1, links=_links(top))
        self._fill(catalog, path, top.entries)
        content = catalog.content()
        totals: Counter[str] = Counter()
        for counter, value in catalog.counters.items():
            totals[counter.partition("_")[2]] += value
        return self.store(content, "C"), len(content), totals

    def _fill(self, catalog: _Catalog, path: str, entries: Mapping[str, Tree]) -> None:
        groups = Counter(one.group for one in entries.values() if isinstance(one, File))
        for name, given in entries.items():
            node, below = _node(given), f"{path}/{name}"
            if isinstance(node, Folder):
                self._folder(catalog, below, name, node)
            elif isinstance(node, Link):
                catalog.counters["self_symlink"] += 1
                catalog.add(below, name, node, 12)
            else:
                catalog.counters["self_regular"] += 1
                catalog.counters["self_file_size"] += len(node.content)
                self._file(catalog, below, name, node, groups[node.group] if node.group else 1)

    def _folder(self, catalog: _Catalog, path: str, name: str, node: Folder) -> None:
        if node.bind is not None:
            catalog.add(path, name, node, 1 | 0x4000)
            catalog.bound.append((path, node.bind.root.text, node.bind.size))
        elif node.nested:
            catalog.add(path, name, node, 3, links=_links(node))
            root, size, totals = self.write(path, node)
            catalog.nested.append((path, root.text, size))
            catalog.counters["self_nested"] += 1
            for counter, value in totals.items():
                catalog.counters[f"subtree_{counter}"] += value
        else:
            catalog.counters["self_dir"] += 1
            catalog.add(path, name, node, 1, links=_links(node))
            self._fill(catalog, path, node.entries)

    def _file(self, catalog: _Catalog, path: str, name: str, node: File, links: int) -> None:
        flags = 4 | self.algorithm << 8 | (0 if node.compressed else 1 << 11)
        flags |= 128 if node.external else 0
        content, size = node.content, node.chunk
        parts = [content[at : at + size] for at in range(0, len(content), size)] if size else []
        suffix = "P" if parts else ""
        stored = [self.store(one, suffix, compressed=node.compressed) for one in parts or [content]]
        self.objects[path.lstrip("/")] = stored
        if parts:
            # the last one first: nothing says that they are in order
            for at, one in reversed(list(enumerate(stored))):
                catalog.chunks.append((*_key(path), at * size, len(parts[at]), one.digest))
            catalog.add(path, name, node, flags | 64)
        else:
            catalog.add(path, name, node, flags, digest=stored[0].digest, links=links)


class _Catalog:
    """The rows of one catalog."""

    def __init__(self, schema: int) -> None:
        self.schema = schema
        self.properties: dict[str, object] = {}
        # the real client wants all of them
        self.counters = Counter({f"{of}_{name}": 0 for of in _PARTS for name in _COUNTERS})
        self.rows: list[tuple[object, ...]] = []
        self.chunks: list[tuple[object, ...]] = []
        self.nested: list[tuple[str, str, int]] = []
        self.bound: list[tuple[str, str, int]] = []

    def add(
        self, path: str, name: str, node: Meta, flags: int, *, digest: bytes | None = None,
        links: int = 1,
    ) -> None:  # fmt: skip
        """Add the row of one entry."""
        parent = _key(path.rpartition("/")[0]) if path else (0, 0)
        group = getattr(node, "group", 0)
        target = os.fsencode(getattr(node, "target", ""))
        size = {File: len(getattr(node, "content", b"")), Link: len(target), Folder: 4096}
        kind = {File: 0o100644, Link: 0o120777, Folder: 0o040755}[type(node)]
        mode = (kind & 0o170000) | (node.mode or kind & 0o7777)
        row = (
            *_key(path), *parent, group << 32 | links, digest, size[type(node)], mode,
            node.mtime_ns // 10**9, node.mtime_ns % 10**9 or None,
            flags | (0x8000 if node.hidden else 0), os.fsencode(name), target,
            node.uid, node.gid, _xattrs(node.xattrs),
        )  # fmt: skip
        self.rows.append(row)

    def content(self) -> bytes:
        """Return the SQLite file; a schema of old has less columns and tables."""
        since = {"xattr BLOB": 2, "mtimens INTEGER": 7}
        there = [at for at, one in enumerate(_COLUMNS) if since.get(one, 0) <= self.schema]
        rows = [[row[at] for at in there] for row in self.rows]
        tables: Tables = {
            "properties": (["key TEXT", "value TEXT"], list(self.properties.items())),
            "catalog": ([_COLUMNS[at] for at in there], rows),
            "chunks": ([*_COLUMNS[:2], "offset INTEGER", "size INTEGER", "hash BLOB"], self.chunks),
            "nested_catalogs": (["path TEXT", "sha1 TEXT", "size INTEGER"], self.nested),
            "bind_mountpoints": (["path TEXT", "sha1 TEXT", "size INTEGER"], self.bound),
            "statistics": (["counter TEXT", "value INTEGER"], list(self.counters.items())),
        }
        if self.schema < 4:
            del tables["bind_mountpoints"]
        return database(tables)


def _node(given: Tree) -> File | Link | Folder:
    if isinstance(given, bytes):
        return File(given)
    return given if isinstance(given, File | Link | Folder) else Folder(given)


def _links(node: Folder) -> int:
    return 2 + sum(isinstance(_node(one), Folder) for one in node.entries.values())


def _key(path: str) -> tuple[int, int]:
    return struct.unpack("<qq", hashlib.md5(os.fsencode(path)).digest())


def database(tables: Tables) -> bytes:
    """Return a SQLite file of these tables: for each its columns and its rows."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        for table, (columns, rows) in tables.items():
            db.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
            # as text, also what is no Unicode and is given as bytes
            marks = ["CAST(? AS TEXT)" if one.endswith(" TEXT") else "?" for one in columns]
            db.executemany(f"INSERT INTO {table} VALUES ({', '.join(marks)})", rows)
        db.commit()
        return db.serialize()


def _xattrs(given: Mapping[str, bytes]) -> bytes | None:
    if not given:
        return None
    parts = [
        bytes([len(key.encode()), len(value)]) + key.encode() + value
        for key, value in given.items()
    ]
    return bytes([1, len(parts)]) + b"".join(parts)
