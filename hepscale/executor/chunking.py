"""What coffea's Runner hands to an executor, as chunks: their keys, halves and files."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coffea.processor.executor import FileMeta, WorkItem

from hepscale.errors import InputError
from hepscale.executor import payload
from hepscale.executor.task import Chunk, InputFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "chunks_of",
    "content",
    "inputs",
    "named_files",
    "split",
    "states",
    "unwrap",
    "wraps",
]


def chunks_of(items: Iterable[Any], digest: str) -> Iterator[Chunk]:
    """Return the chunks of a run; `digest` covers the function that is applied to them."""
    seen: dict[str, int] = {}
    for item in items:
        identity, about = _identify(item)
        key = payload.chunk_key(digest, identity)
        # the same file given twice is counted twice, as every executor of coffea does
        seen[key] = seen.get(key, 0) + 1
        if seen[key] > 1:
            key = payload.chunk_key(digest, identity, seen[key] - 1)
        yield Chunk(key, item, *about)


def _identify(item: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return what makes a chunk the chunk that it is, and (dataset, file, start, stop)."""
    if isinstance(item, WorkItem | FileMeta):
        # a fileset may hold paths
        name = os.fspath(item.filename)
    if isinstance(item, WorkItem):
        start, stop = int(item.entrystart), int(item.entrystop)
        preload = None if item.preload is None else sorted(item.preload)
        identity: tuple[Any, ...] = (
            "chunk",
            item.dataset,
            name,
            item.fileuuid,
            _stamp(item, name),
            item.treename,
            start,
            stop,
            item.usermeta,
            preload,
        )
        return identity, (item.dataset, name, start, stop)
    if isinstance(item, FileMeta):
        identity = ("file", item.dataset, name, item.treename, item.metadata)
        return identity, (item.dataset, name)
    return ("item", item), ()


def _stamp(item: WorkItem, name: str) -> tuple[str, int, int] | None:
    """Return which file this is where coffea's uuid says only what it is called: parquet's."""
    if item.fileuuid == hashlib.md5(name.encode(), usedforsecurity=False).digest():
        with suppress(OSError):
            found = Path(name).stat()
            return str(Path(name).absolute()), found.st_size, found.st_mtime_ns
    return None


def split(chunk: Chunk) -> tuple[Chunk, Chunk] | None:
    """Return the two halves of a chunk, or None where it cannot be split."""
    if not isinstance(chunk.item, WorkItem) or chunk.entries < 2:
        return None
    middle = (chunk.start + chunk.stop) // 2
    first = replace(
        chunk,
        key=payload.chunk_key(chunk.key, ("half", 0)),
        item=replace(chunk.item, entrystop=middle),
        stop=middle,
    )
    second = replace(
        chunk,
        key=payload.chunk_key(chunk.key, ("half", 1)),
        item=replace(chunk.item, entrystart=middle),
        start=middle,
    )
    return first, second


def named_files(files: Iterable[str | os.PathLike[str]]) -> tuple[InputFile, ...]:
    """Return the files that every task is to find in its folder.

    Raises
    ------
    InputError
        One is not there, or two would have the same name.
    """
    found: dict[str, Path] = {}
    for one in files:
        path = Path(one).expanduser()
        source = Path(os.path.normpath(path.absolute()))
        if not source.exists():
            raise InputError(
                "There is no such file to be sent along.",
                items=[str(source)],
                cause="the name is misspelt, or relative to another folder",
                fix=f"ls {source.parent}",
            )
        below = Path(os.path.normpath(path))
        inside = not path.is_absolute() and below.parts[:1] not in {(), (os.pardir,)}
        name = str(below) if inside else source.name
        if found.setdefault(name, source) != source:
            raise InputError(
                f"Two files to be sent along would both be called {name}.",
                items=[str(found[name]), str(source)],
                cause="one that is not below the current folder keeps the last part of its name",
                fix="give one of them another name, or open it by its absolute path",
            )
    return tuple(InputFile(name, source) for name, source in found.items())


def states(named: Iterable[InputFile]) -> list[tuple[str, int, int]]:
    """Return name, size and time of each named file, of folders those of the files in them."""
    found = []
    for one in named:
        inner = sorted(one.source.rglob("*")) if one.source.is_dir() else [one.source]
        for path in inner:
            with suppress(OSError):
                seen = path.stat()
                name = str(Path(one.name) / path.relative_to(one.source))
                found.append((name, seen.st_size, seen.st_mtime_ns))
    return found


def inputs(named: Iterable[InputFile], chunk: Chunk) -> Iterator[InputFile]:
    """Yield the files that a chunk reads by a relative name, with those that all tasks get."""
    yield from named
    name = chunk.file
    if name and "://" not in name and not Path(name).is_absolute():
        yield InputFile(name, Path(name).absolute())


def content(merged: Any) -> Any:
    """Return what the user's processor has returned, of outputs as coffea's Runner wraps them."""
    if isinstance(merged, dict) and "out" in merged and "processed" in merged:
        return merged["out"]
    return merged


def wraps(type_name: str, message: str) -> bool:
    """Return whether an exception is the one in which coffea wraps another."""
    return type_name == "Exception" and message.startswith("Failed ")


def unwrap(error: BaseException) -> BaseException:
    """Return the exception that coffea has wrapped."""
    while error.__cause__ is not None and wraps(type(error).__name__, str(error)):
        error = error.__cause__
    return error
