"""Fills a cache with parts of a repository, for workers that reach no server."""

from __future__ import annotations

import os
import posixpath
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hepscale.cvmfs_access import found
from hepscale.errors import InputError
from hepscale.worker.cvmfs import ObjectError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from hepscale.cvmfs_access import Opened
    from hepscale.worker.cvmfs.catalog import Entry
    from hepscale.worker.cvmfs.names import Name

__all__ = ["Plan", "Prefetched", "fetch", "plan"]

_THREADS = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """What is below some paths.

    Attributes
    ----------
    files
        How many there are.
    objects
        What they are stored as, each once: its plain size, and whether servers keep it compressed.
    absent
        Those that the cache does not have.
    leaving
        Links that lead out of what is fetched, with their targets.
    external
        Files that are on other servers, which are not fetched.
    """

    files: int
    objects: dict[Name, tuple[int, bool]]
    absent: tuple[Name, ...]
    leaving: tuple[tuple[str, str], ...]
    external: tuple[str, ...]

    @property
    def absent_bytes(self) -> int:
        """Plain size of what is to be fetched."""
        return sum(self.objects[name][0] for name in self.absent)


@dataclass(frozen=True, slots=True)
class Prefetched:
    """What was done: how many objects were fetched, and how many bytes they have."""

    objects: int
    size_bytes: int


def plan(repository: Opened, paths: Iterable[str]) -> Plan:
    """Find out what is below some paths; the catalogs that are read for it are cached.

    Parameters
    ----------
    repository
        Where they are.
    paths
        Files or folders; links are followed. What is hidden below a folder is left out.

    Raises
    ------
    InputError
        One of them is not there.
    ObjectError
        A catalog cannot be had.
    """
    waiting = [found(repository, path) for path in paths]
    tops = tuple(f"/cvmfs/{repository.name}{one.path}/" for one in waiting)
    known: set[str] = set()
    files: list[Entry] = []
    links: list[Entry] = []
    while waiting:
        entry = waiting.pop()
        if entry.path in known:
            continue
        known.add(entry.path)
        if stat.S_ISDIR(entry.mode):
            below = repository.revision.children(entry.path).values()
            waiting += [one for one in below if not one.hidden]
        elif stat.S_ISLNK(entry.mode):
            links.append(entry)
        elif stat.S_ISREG(entry.mode):
            files.append(entry)
    objects = {
        chunk.object: (chunk.size, one.compressed)
        for one in files
        if not one.external
        for chunk in repository.revision.chunks(one)
    }
    # the real client wants those of empty files as well
    objects |= {
        one.object: (0, one.compressed)
        for one in files
        if one.object is not None and not one.size and not one.external
    }
    return Plan(
        len(files),
        objects,
        tuple(name for name in objects if not repository.cache.has(name)),
        tuple((one.path, one.link) for one in links if _leaves(repository.name, one, tops)),
        tuple(one.path for one in files if one.external),
    )


def _leaves(name: str, link: Entry, tops: tuple[str, ...]) -> bool:
    folder = f"/cvmfs/{name}{posixpath.dirname(link.path)}"
    target = posixpath.normpath(posixpath.join(folder, link.link))
    return not f"{target}/".startswith(tops)


def fetch(
    repository: Opened, wanted: Plan, folder: Path, tell: Callable[[int], None]
) -> Prefetched:
    """Fetch what the cache lacks.

    Parameters
    ----------
    repository
        With the cache that is filled.
    wanted
        What it is to have.
    folder
        Where the cache is.
    tell
        Is called with the bytes of each object that has come.

    Raises
    ------
    InputError
        There is no room, or objects cannot be had; the others are there then.
    """
    free = shutil.disk_usage(folder).free
    if wanted.absent_bytes > free:
        raise InputError(
            f"{wanted.absent_bytes / 1e6:.0f} MB are to be fetched, and {free / 1e6:.0f} MB are "
            "free.",
            items=[str(folder)],
            cause="the disk is too small, or a path holds more than is needed",
            fix="give narrower paths, or another folder: --cache DIR",
        )
    failed: list[str] = []

    def take(name: Name) -> None:
        size, compressed = wanted.objects[name]
        try:
            os.close(
                repository.cache.open(name, repository.fetcher, compressed=compressed, most=size)
            )
        except ObjectError as error:
            failed.append(f"{name.text}: {error.strerror}")
        else:
            tell(size)

    pool = ThreadPoolExecutor(_THREADS)
    try:
        for _ in pool.map(take, wanted.absent):
            pass
    finally:
        # what has not begun does not begin after Ctrl-C
        pool.shutdown(cancel_futures=True)
    if failed:
        raise InputError(
            f"{len(failed)} of {len(wanted.absent)} objects of {repository.name} cannot be had.",
            items=sorted(failed),
            cause="the servers lack them, or a proxy or a server changes them",
            fix="run the command again: what has come is not fetched twice",
        )
    return Prefetched(len(wanted.absent), wanted.absent_bytes)
