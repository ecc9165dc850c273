"""Verify the objects of a cache's folder."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

from .digests import Digests, is_told, plain_of
from .names import Name
from .store import DIGESTS, folders

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Checked", "check"]


class Checked(NamedTuple):
    """What was found in a cache.

    Parameters
    ----------
    verified
        How many objects are what their names say.
    damaged
        Names of those that are not.
    unknown
        Names of those of which nothing can be told: they cannot be opened; or no digest was
        kept, and they were not compressed as zlib does by default, or are damaged.
    """

    verified: int
    damaged: tuple[str, ...]
    unknown: tuple[str, ...]


def check(folder: str, *, progress: Callable[[int, int], None] | None = None) -> Checked:
    """Verify the objects of a cache, this user's or a site's; nothing is changed.

    Parameters
    ----------
    folder
        Of the cache.
    progress
        Called after each object with how many have been read, and how many there are.

    Raises
    ------
    OSError
        If the folder cannot be read.
    """
    names = _names(folder)
    digests = Digests(os.path.join(folder, DIGESTS), 0)
    verified, damaged, unknown = 0, [], []
    for done, name in enumerate(names, 1):
        # removed meanwhile, if it is not there
        with contextlib.suppress(FileNotFoundError):
            verdict = _verdict(os.path.join(folder, name.cached), name, digests)
            if verdict:
                verified += 1
            elif verdict is None:
                unknown.append(name.text)
            else:
                damaged.append(name.text)
        if progress is not None:
            progress(done, len(names))
    return Checked(verified, tuple(damaged), tuple(unknown))


def _names(folder: str) -> list[Name]:
    found = []
    with os.scandir(folder) as entries:
        present = sorted({entry.name for entry in entries} & set(folders()))
    for first in present:
        for rest in sorted(os.listdir(os.path.join(folder, first))):
            with contextlib.suppress(ValueError):
                found.append(Name.parse(first + rest))
    return found


def _verdict(path: str, name: Name, digests: Digests) -> bool | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        return None
    try:
        kept = digests.of(name)
        if kept is not None:
            return kept == plain_of(descriptor)
        return is_told(descriptor, name) or None
    except OSError:
        # the disk cannot read it
        return False
    finally:
        os.close(descriptor)
