"""Repositories of CVMFS read here, without a mount: what ``hepscale cvmfs`` works with."""

from __future__ import annotations

import os
import posixpath
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepscale.config import CvmfsSettings, load_settings
from hepscale.errors import ConfigError, InputError
from hepscale.executor import cvmfs
from hepscale.worker.cvmfs import ObjectError, RepositoryError, opening
from hepscale.worker.cvmfs.cache import Cache
from hepscale.worker.cvmfs.repository import Repository

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hepscale.worker.cvmfs.catalog import Entry
    from hepscale.worker.cvmfs.fetch import Fetcher
    from hepscale.worker.cvmfs.repository import Revision

__all__ = ["Opened", "explained", "found", "opened", "settings", "shown"]

_MOST_LINKS = 40


@dataclass(frozen=True, slots=True)
class Opened:
    """A repository that is open.

    Attributes
    ----------
    name
        Of it.
    revision
        The one that is used, verified.
    fetcher
        Where its objects come from.
    cache
        Where they are kept.
    """

    name: str
    revision: Revision
    fetcher: Fetcher
    cache: Cache


def settings(names: tuple[str, ...], config: Path | None) -> dict[str, Any]:
    """Return what a client is told of repositories.

    Parameters
    ----------
    names
        Of the repositories.
    config
        A file or folder in CVMFS's own form, which is all that counts then; None: the settings,
        and ``/etc/cvmfs``.

    Raises
    ------
    ConfigError
        As `hepscale.executor.cvmfs.for_workers`.
    """
    given = load_settings().cvmfs if config is None else CvmfsSettings(config=config)
    told = cvmfs.for_workers(cvmfs.named(given, names))
    assert told is not None
    # those of the settings are folders on the workers
    for name in ("cache", "alien_cache"):
        if config is None and told[name] and not Path(told[name]).is_dir():
            told[name] = None
    return {**told, "cache": told["cache"] or str(load_settings().cache_dir / "cvmfs")}


@contextmanager
def opened(told: dict[str, Any], filled: Path | None = None) -> Iterator[Opened]:
    """Open the one repository of `told`.

    Parameters
    ----------
    told
        As `settings` returns it.
    filled
        A cache in the alien layout that is to be filled, in place of the configured ones.

    Raises
    ------
    InputError
        It cannot be used, or what is done with it meets an object that cannot be had.
    """
    (one,) = told["repositories"]
    with explained(one["name"]):
        fetcher = opening.fetcher(told, one)
        try:
            cache = _cache(told, filled)
            repository = Repository(one, cache, fetcher, variables=told["variables"])
            yield Opened(one["name"], repository.open(), fetcher, cache)
        finally:
            fetcher.close()


def _cache(told: dict[str, Any], filled: Path | None) -> Cache:
    if filled is None:
        return opening.cache(told)
    try:
        filled.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_cache(filled, error.strerror or str(error)) from None
    if not os.access(filled, os.W_OK):
        raise _no_cache(filled, "permission denied")
    # as it can be written, the first is not used
    return Cache(str(filled), alien=str(filled))


def _no_cache(folder: Path, cause: str) -> ConfigError:
    return ConfigError(
        "The cache cannot be filled.",
        items=[str(folder)],
        cause=cause.lower(),
        fix="give --cache a folder that you can write to",
    )


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn the errors of the client into those that a user reads.

    Raises
    ------
    InputError
        In place of them.
    """
    try:
        yield
    except RepositoryError as error:
        items = [error.item] if error.item else []
        fix = error.fix or "hepscale config show"
        raise InputError(error.fact, items=items, cause=error.cause, fix=fix) from None
    except ObjectError as error:
        raise InputError(
            f"Something of {name} cannot be had.",
            items=[f"{error.filename or 'object'}: {error.strerror}"],
            cause="the servers lack it, a proxy or a server changes it, or the network is down",
            fix="try again; with another server: hepscale cvmfs --help",
        ) from None


def found(repository: Opened, path: str, *, follow: bool = True) -> Entry:
    """Return what lies at a path.

    Parameters
    ----------
    repository
        Where.
    path
        In it; with ``/cvmfs/NAME`` before it or not.
    follow
        Whether a link at its end is followed.

    Raises
    ------
    InputError
        There is nothing, or a link leads out of the repository or nowhere.
    """
    top = f"/cvmfs/{repository.name}"
    given = posixpath.normpath(f"/{path}").replace("//", "/")
    parts = _parts(given.removeprefix(top) if f"{given}/".startswith(f"{top}/") else given)
    at, left = "", _MOST_LINKS
    while parts:
        name = parts.pop(0)
        if name == "..":
            at = posixpath.dirname(at).rstrip("/")
            continue
        entry = repository.revision.entry(f"{at}/{name}")
        if entry is None:
            raise _absent(repository, path, f"{at}/{name}", at)
        if not stat.S_ISLNK(entry.mode) or not (parts or follow):
            at = entry.path
            if parts and not stat.S_ISDIR(entry.mode):
                raise _absent(repository, path, f"{at} is no folder: {at}/{parts[0]}", at)
            continue
        target, left = entry.link, left - 1
        if target.startswith("/"):
            if not f"{target}/".startswith(f"{top}/"):
                what = f"{entry.path} leads out of it: {target}"
                raise _absent(repository, path, what, at)
            at, target = "", target.removeprefix(top)
        if not left or not entry.link:
            what = f"{entry.path}, a link to {entry.link!r}, leads nowhere: it"
            raise _absent(repository, path, what, at)
        parts = [*_parts(target), *parts]
    entry = repository.revision.entry(at)
    assert entry is not None
    return entry


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _absent(repository: Opened, path: str, what: str, near: str) -> InputError:
    return InputError(
        f"There is no such file in {repository.name}.",
        items=[path],
        cause=f"{what} is not in revision {repository.revision.number}",
        fix=f"hepscale cvmfs ls {repository.name} {near or '/'}",
    )


def shown(repository: Opened, entry: Entry) -> dict[str, Any]:
    """Return what is known of an entry, as JSON holds it."""
    told: dict[str, Any] = {
        "path": _text(entry.path or "/"),
        "type": _kind(entry.mode),
        "mode": stat.filemode(entry.mode),
        "size": entry.size,
        "uid": entry.uid,
        "gid": entry.gid,
        "links": entry.nlink,
        "mtime_ns": entry.mtime_ns,
        "inode": entry.inode,
    }
    if stat.S_ISLNK(entry.mode):
        told |= {"target": _text(entry.link), "raw_target": _text(entry.rawlink)}
    elif stat.S_ISREG(entry.mode) and not entry.external:
        told["objects"] = [one.object.text for one in repository.revision.chunks(entry)]
    told |= {flag: True for flag in ("nested", "hidden", "external") if getattr(entry, flag)}
    if entry.xattrs:
        told["xattrs"] = {
            name: value.decode("utf-8", "replace") for name, value in entry.xattrs.items()
        }
    return told


def _text(path: str) -> str:
    """Return a path in which bytes that are no UTF-8 are shown as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
    return kinds.get(stat.S_IFMT(mode), "special")
